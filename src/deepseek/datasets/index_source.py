"""Pictures listed in an index file: a path and a label a line, as CSV, TSV or Parquet.

A relative path is resolved against the index file's folder and must stay inside it; a file
elsewhere is named by an absolute path, so that an index from a stranger says openly what it reads.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from typing_extensions import override

from deepseek.datasets.source import ImageSource, number_labels
from deepseek.errors import DataError
from deepseek.registry import did_you_mean


class IndexSource(ImageSource):
    """The pictures of an index file, in its order.

    Args:
        path: the index file; `.parquet` by its suffix, tabs in `.tsv`, commas otherwise.
        class_names: forces the classes.
        path_column: column with the picture's path.
        label_column: column with the class, by name or number.
    """

    def __init__(
        self,
        path: Path,
        class_names: Sequence[str] | None = None,
        path_column: str = "path",
        label_column: str = "label",
    ) -> None:
        read = _read_parquet if path.suffix == ".parquet" else _read_csv
        paths, labels = read(path, path_column, label_column)
        if not paths:
            raise DataError(f"{path} lists no pictures", fix="add a line for each picture")
        self._files = [_resolve(name, path) for name in paths]
        missing = [file for file in self._files if not os.path.isfile(file)]
        if missing:
            raise DataError(
                f"{path}: {len(missing)} of {len(paths)} listed pictures do not exist:"
                f" {', '.join(missing[:3])}",
                fix="correct the paths; relative ones start at the folder of the index file",
            )
        targets, names = number_labels(labels, class_names, str(path))
        super().__init__("index file", str(path), targets, names)

    @override
    def read(self, index: int) -> bytes:
        with open(self._files[index], "rb") as file:
            return file.read()

    @override
    def describe(self, index: int) -> str:
        return self._files[index]


def missing_column(path: object, column: str, columns: Sequence[str], argument: str) -> DataError:
    """Return the error for a table without a column that is asked for."""
    return DataError(
        f"{path} has no column {column!r}; its columns: {', '.join(columns)}",
        fix=f"set {argument}=...; {did_you_mean(column, columns)}",
    )


def _resolve(name: str, index: Path) -> str:
    if os.path.isabs(name):
        return name
    inside = os.path.normpath(name)
    if inside.split(os.sep)[0] == os.pardir:
        raise DataError(
            f"{index}: the relative path {name!r} leads out of the folder of the index file",
            fix="give an absolute path for a picture that lies elsewhere",
        )
    return os.path.join(index.parent.absolute(), inside)


def _read_csv(path: Path, path_column: str, label_column: str) -> tuple[list[str], list[str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            columns = list(reader.fieldnames or [])
            _check_columns(path, columns, path_column, label_column)
            paths, labels = [], []
            for row in reader:
                if not row[path_column] or not (row[label_column] or "").strip():
                    raise DataError(
                        f"{path}, line {reader.line_num}: {path_column}={row[path_column]!r},"
                        f" {label_column}={row[label_column]!r}; both are needed",
                        fix="complete the line, or remove it",
                    )
                paths.append(row[path_column])
                labels.append(row[label_column])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a UTF-8 table: {error}", fix="save it as UTF-8") from error
    return paths, labels


def _read_parquet(
    path: Path, path_column: str, label_column: str
) -> tuple[list[str], list[str | int]]:
    # One thread: Arrow's pool does not survive the fork of a worker.
    file = pq.ParquetFile(path)
    _check_columns(path, file.schema_arrow.names, path_column, label_column)
    table = file.read([path_column, label_column], use_threads=False)
    for column in (path_column, label_column):
        if table[column].null_count:
            raise DataError(
                f"{path}: column {column!r} has {table[column].null_count} empty entries",
                fix="complete or remove these rows",
            )
    return table[path_column].to_pylist(), table[label_column].to_pylist()


def _check_columns(path: Path, columns: list[str], path_column: str, label_column: str) -> None:
    for column, argument in ((path_column, "path_column"), (label_column, "label_column")):
        if column not in columns:
            raise missing_column(path, column, columns, argument)
