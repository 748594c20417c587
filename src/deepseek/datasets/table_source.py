"""Pictures inside tables in the Hugging Face image layout: Parquet files, or a saved data set.

A picture is a struct {bytes, path} or plain binary; class names come from the Hugging Face
metadata. Parquet is compressed and is read into memory once, where worker processes share it. A
saved data set (`save_to_disk`) is mapped into memory: only the pages in use are read.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from deepseek.datasets.index_source import missing_column
from deepseek.datasets.source import ImageSource, name_labels, number_labels
from deepseek.errors import DataError

_MAX_PARQUET_BYTES = 8 * 2**30


class TableSource(ImageSource):
    """Pictures of Arrow tables.

    Args:
        layout: in words.
        path: where they come from.
        chunks: (place, picture array, label array, class names of the file) of each file's chunks.
        folder: where a picture without bytes is looked up by its path.
        class_names: the classes, or None: from the labels.
    """

    def __init__(
        self,
        layout: str,
        path: str,
        chunks: list[tuple[str, pa.Array, pa.Array, list[str] | None]],
        folder: Path,
        class_names: Sequence[str] | None,
    ) -> None:
        self._folder = folder
        self._chunks, labels = [], []
        for place, pictures, chunk_labels, own in chunks:
            if chunk_labels.null_count:
                raise DataError(
                    f"{place}: {chunk_labels.null_count} labels are empty",
                    fix="give every picture a label, or remove its row",
                )
            is_struct = pa.types.is_struct(pictures.type)
            paths = pictures.field("path") if is_struct and _has_field(pictures, "path") else None
            self._chunks.append((place, pictures.field("bytes") if is_struct else pictures, paths))
            found = chunk_labels.to_pylist()
            labels += name_labels(found, own, class_names or own, place) if own else found
        self._starts = np.cumsum([0] + [len(pictures) for _, pictures, _ in self._chunks])
        targets, names = number_labels(labels, class_names, path)
        super().__init__(layout, path, targets, names)

    @override
    def read(self, index: int) -> bytes:
        chunk, row = self._locate(index)
        place, pictures, paths = self._chunks[chunk]
        content = pictures[row].as_py()
        if content is not None:
            return content
        name = paths[row].as_py() if paths is not None else None
        # The table may come from a stranger: a bare file name beside it, and nothing else.
        if not name or Path(name).name != name:
            raise DataError(
                f"{place}, row {row}: no picture, and path={name!r} is not a file beside the table",
                fix="store the pictures' bytes in the table",
            )
        return (self._folder / name).read_bytes()

    @override
    def describe(self, index: int) -> str:
        chunk, row = self._locate(index)
        place, _, paths = self._chunks[chunk]
        name = paths[row].as_py() if paths is not None else None
        return f"{place}[{index}]" + (f" ({name})" if name else "")

    def _locate(self, index: int) -> tuple[int, int]:
        chunk = int(np.searchsorted(self._starts, index, side="right")) - 1
        return chunk, index - int(self._starts[chunk])


def read_parquet_pictures(
    files: Sequence[Path],
    path: str,
    class_names: Sequence[str] | None,
    image_column: str | None,
    label_column: str,
) -> TableSource:
    """Read Parquet files in the Hugging Face image layout.

    Raises:
        DataError: if a column is missing, or the pictures do not fit in memory.
    """
    num_bytes = sum(file.stat().st_size for file in files)
    if num_bytes > _MAX_PARQUET_BYTES:
        raise DataError(
            f"{path}: {num_bytes} bytes of Parquet are more than the {_MAX_PARQUET_BYTES} that"
            " are held in memory; compressed Parquet has no random access",
            fix="convert it to tar shards, or save it by datasets' save_to_disk",
        )
    chunks, own = [], None
    for file in files:
        try:
            parquet = pq.ParquetFile(file)
            features = parse_features(
                (parquet.schema_arrow.metadata or {}).get(b"huggingface"), file
            )
            image = find_image_column(parquet.schema_arrow, file, image_column, label_column)
            # One thread: Arrow's pool does not survive the fork of a worker.
            table = parquet.read([image, label_column], use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{file} is not readable Parquet: {error}", fix="get it again"
            ) from error
        own = names_of(features, label_column) or own
        chunks += _chunks_of(str(file), table, image, label_column, own)
        class_names = class_names or own
    return TableSource("Parquet with pictures", path, chunks, files[0].parent, class_names)


def read_saved_dataset(
    folder: Path, class_names: Sequence[str] | None, image_column: str | None, label_column: str
) -> TableSource:
    """Map a data set saved by `save_to_disk` into memory.

    Raises:
        DataError: if the folder is not one, or a column is missing.
    """
    tables, features = map_saved_dataset(folder)
    own = names_of(features, label_column)
    chunks = []
    for place, table in tables:
        image = find_image_column(table.schema, folder, image_column, label_column)
        chunks += _chunks_of(place, table, image, label_column, own)
    return TableSource(
        "saved Hugging Face data set", str(folder), chunks, folder, class_names or own
    )


def map_saved_dataset(folder: Path) -> tuple[list[tuple[str, pa.Table]], object]:
    """Map the tables of a data set saved by `save_to_disk`.

    Returns:
        Place and table of each file, and the features.

    Raises:
        DataError: if the folder is not a whole saved data set.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder} is not a whole saved data set: {error!r}", fix="save it again"
        ) from error
    tables = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(
                f"{folder}/state.json names the file {name!r}, which is not in this folder",
                fix="save the data set again",
            )
        try:
            table = pa.ipc.open_stream(pa.memory_map(str(folder / name))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{folder / name} is not readable Arrow: {error}", fix="save it again"
            ) from error
        tables.append((str(folder / name), table))
    return tables, info.get("features") if isinstance(info, dict) else None


def find_image_column(
    schema: pa.Schema, path: Path, image_column: str | None, label_column: str
) -> str:
    """Return the column with pictures: the one asked for, or the only one of its type.

    Raises:
        DataError: if there is none or several, or the label column is missing.
    """
    found = [field.name for field in schema if _holds_pictures(field.type)]
    if image_column is not None and image_column not in schema.names:
        raise missing_column(path, image_column, schema.names, "image_column")
    if image_column is None and len(found) != 1 and "image" not in found:
        raise DataError(
            f"{path} has {len(found)} columns that can hold pictures; its columns:"
            f" {', '.join(schema.names)}",
            fix="name it by image_column=...",
        )
    if label_column not in schema.names:
        raise missing_column(path, label_column, schema.names, "label_column")
    if image_column is not None:
        return image_column
    return "image" if "image" in found else found[0]


def has_pictures(schema: pa.Schema) -> bool:
    """Tell whether a table holds pictures themselves, not only paths."""
    return any(_holds_pictures(field.type) for field in schema)


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _has_field(pictures: pa.Array, name: str) -> bool:
    return any(pictures.type.field(i).name == name for i in range(pictures.type.num_fields))


def _chunks_of(place: str, table: pa.Table, image: str, label: str, own: list[str] | None) -> list:
    batches = table.select([image, label]).to_batches()
    return [(place, batch.column(0), batch.column(1), own) for batch in batches]


def parse_features(metadata: bytes | None, path: Path) -> object:
    """Return the features in the Hugging Face metadata of a Parquet file, `None` without any.

    Raises:
        DataError: the metadata is malformed.
    """
    if metadata is None:
        return None
    try:
        return json.loads(metadata)["info"]["features"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: its Hugging Face metadata is malformed: {error!r}", fix="write it again"
        ) from error


def names_of(features: object, label_column: str) -> list[str] | None:
    """Return the names of a ClassLabel feature, or of a list of them."""
    feature = features.get(label_column) if isinstance(features, Mapping) else None
    if isinstance(feature, Mapping) and "feature" in feature:
        feature = feature["feature"]
    if isinstance(feature, list) and len(feature) == 1:  # older versions: a list of one feature
        feature = feature[0]
    names = feature.get("names") if isinstance(feature, Mapping) else None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return names
    return None
