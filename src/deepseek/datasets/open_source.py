"""From a path to the source that reads what is there."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deepseek.datasets.digits_source import DigitsSource
from deepseek.datasets.folder_source import FolderSource
from deepseek.datasets.index_source import IndexSource
from deepseek.datasets.source import ImageSource
from deepseek.datasets.table_source import (
    has_pictures,
    read_parquet_pictures,
    read_saved_dataset,
)
from deepseek.datasets.tar_source import TarSource
from deepseek.errors import DataError


@dataclass(frozen=True)
class SourceOptions:
    """What the user says about the content, beside its path."""

    class_names: Sequence[str] | None = None
    image_column: str | None = None
    label_column: str = "label"
    path_column: str = "path"


def open_source(path: str | os.PathLike, options: SourceOptions) -> ImageSource:
    """Detect the layout of `path`, and open it.

    Raises:
        DataError: if there is nothing, or nothing that can be read.
    """
    text = os.fspath(path)
    place = Path(text).expanduser()
    if text == "digits" and not place.exists():
        return DigitsSource(options.class_names)
    if place.is_dir():
        return _open_folder(place, options)
    if place.is_file():
        return _open_files([place], text, options)
    if re.search(r"[*?\[{]", text):
        files = expand_pattern(str(place))
        if not files:
            raise DataError(f"no file fits the pattern {text}", fix="correct the pattern")
        return _open_files(files, text, options)
    # `folder/train` stands for `folder/train-*.parquet` or `folder/train-*.tar`.
    for suffix in (".parquet", ".tar"):
        files = _sorted_files(place.parent, f"{glob.escape(place.name)}-*{suffix}")
        if files:
            return _open_files(files, text, options)
    raise DataError(f"{text} does not exist", fix="correct the path")


def _open_folder(folder: Path, options: SourceOptions) -> ImageSource:
    refuse_splits(folder)
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return read_saved_dataset(
            folder, options.class_names, options.image_column, options.label_column
        )
    for pattern in ("*.parquet", "*.tar"):
        files = _sorted_files(folder, pattern)
        if not files:
            continue
        # WebDataset and Hugging Face both number the shards of a split: train-00000-of-00002.
        splits = sorted({re.sub(r"-\d+(-of-\d+)?$", "", file.stem) for file in files})
        if len(splits) > 1:
            raise DataError(
                f"{folder} holds several sets of {pattern}: {', '.join(splits)}",
                fix=f"give one of them, such as {folder / splits[-1]}",
            )
        return _open_files(files, str(folder), options)
    return FolderSource(folder, options.class_names)


def refuse_splits(folder: Path) -> None:
    """Raise `DataError` for several splits that were saved together: one of them is meant."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise DataError(
            f"{folder} holds several saved splits: {', '.join(splits)}",
            fix=f"give one of them, such as {folder / splits[0]}" if splits else "save it again",
        )


def _open_files(files: list[Path], text: str, options: SourceOptions) -> ImageSource:
    suffixes = {file.suffix.lower() for file in files}
    if suffixes == {".tar"}:
        return TarSource(files, text, options.class_names, options.label_column)
    if suffixes == {".parquet"}:
        if len(files) == 1 and not _parquet_has_pictures(files[0]):
            return _open_index(files[0], options)
        return read_parquet_pictures(
            files, text, options.class_names, options.image_column, options.label_column
        )
    if len(files) == 1 and suffixes <= {".csv", ".tsv"}:
        return _open_index(files[0], options)
    names = ", ".join(file.name for file in files[:3])
    raise DataError(
        f"{text}: {len(files)} files ({names}) are not a data set that is read here",
        fix="give class folders, one .csv, .tsv or .parquet index, .parquet files with pictures,"
        " uncompressed .tar shards, or a saved data set",
    )


def _open_index(file: Path, options: SourceOptions) -> IndexSource:
    return IndexSource(file, options.class_names, options.path_column, options.label_column)


def _parquet_has_pictures(file: Path) -> bool:
    try:
        return has_pictures(pq.read_schema(file))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not readable Parquet: {error}", fix="get it again") from error


def _sorted_files(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if file.is_file())


def expand_pattern(pattern: str) -> list[Path]:
    """Return the files of a pattern with `*`, `?`, `[...]`, `{000..009}` or `{a,b}`.

    Raises:
        DataError: a file that the pattern names does not exist.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if i % 2 == 0 else _brace(part) for i, part in enumerate(parts)]
    found = []
    for combination in product(*choices):
        name = "".join(combination)
        matches = sorted(glob.glob(name))
        if not matches and "{" in pattern and not re.search(r"[*?\[]", name):
            raise DataError(
                f"{name}, named by the pattern {pattern}, does not exist", fix="correct the pattern"
            )
        found += matches
    return [Path(name) for name in found]


def _brace(text: str) -> list[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if span is None:
        return text.split(",")
    first, last = span.groups()
    if int(last) - int(first) > 1_000_000:
        raise DataError(f"{{{text}}} names over a million files", fix="correct the pattern")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
