"""The files of LUNA16: scans as MetaImage, findings, candidates and marks as CSV.

Layout: `subset0/UID.mhd` with `UID.raw`, ...; `annotations.csv`, `annotations_excluded.csv`,
`candidates_v2.csv`. Coordinates are millimetres, LPS, as `deepseek.datasets.volume` has them.
https://luna16.grand-challenge.org
"""

import csv
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from deepseek.datasets.text_numbers import read_number
from deepseek.datasets.volume_source import check_index_size
from deepseek.errors import DataError
from deepseek.medical.froc import Findings, Marks
from deepseek.registry import did_you_mean

_PLACE = ("coordX", "coordY", "coordZ")


def luna16_scans(folder: str | os.PathLike) -> dict[str, Path]:
    """Return scan -> file of every `.mhd` in a folder and its sub-folders.

    Raises:
        DataError: there are none, or a scan is there twice.
    """
    found: dict[str, Path] = {}
    for path in sorted(Path(folder).rglob("*.mhd")):
        if path.stem in found:
            raise DataError(
                f"a scan is there twice: {found[path.stem]} and {path}", fix="remove one of them"
            )
        found[path.stem] = path
    if not found:
        raise DataError(f"{folder} holds no .mhd files", fix="unpack subset0.zip, ... there")
    return found


def read_findings(
    annotations: str | os.PathLike,
    excluded: str | os.PathLike | None = None,
    scans: Iterable[str] = (),
) -> dict[str, Findings]:
    """Return the findings of each scan.

    Args:
        annotations: CSV with seriesuid, coordX, coordY, coordZ and diameter_mm.
        excluded: likewise, of findings that count neither when found nor when missed.
        scans: names of all scans, those without findings too.

    Raises:
        DataError: a column is missing, or a number is none.
    """
    rows: dict[str, list[tuple[list[float], bool]]] = {str(scan): [] for scan in scans}
    for path, is_excluded in ((annotations, False), (excluded, True)):
        if path is None:
            continue
        for scan, numbers in _read_rows(Path(path), "diameter_mm"):
            rows.setdefault(scan, []).append((numbers, is_excluded))
    return {scan: _findings(listed) for scan, listed in rows.items()}


def _findings(listed: list[tuple[list[float], bool]]) -> Findings:
    table = np.array([numbers for numbers, _ in listed]).reshape(-1, 4)
    return Findings(table[:, :3], table[:, 3], np.array([flag for _, flag in listed], bool))


def read_marks(path: str | os.PathLike, score: str = "probability") -> dict[str, Marks]:
    """Return the marks of each scan: of a submission, or of `candidates_v2.csv` by `class`.

    Args:
        path: CSV with seriesuid, coordX, coordY, coordZ and a score.
        score: the column of the score.

    Raises:
        DataError: a column is missing, or a number is none.
    """
    rows: dict[str, list[list[float]]] = {}
    for scan, numbers in _read_rows(Path(path), score):
        rows.setdefault(scan, []).append(numbers)
    tables = {scan: np.array(listed) for scan, listed in rows.items()}
    return {scan: Marks(table[:, :3], table[:, 3]) for scan, table in tables.items()}


def write_marks(path: str | os.PathLike, marks: dict[str, Marks]) -> None:
    """Write marks as LUNA16 takes a submission."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["seriesuid", *_PLACE, "probability"])
        for scan, said in marks.items():
            for place, score in zip(said.centers_mm.tolist(), said.scores.tolist(), strict=True):
                writer.writerow([scan, *place, score])


def _read_rows(path: Path, last: str) -> Iterator[tuple[str, list[float]]]:
    """Yield scan, and x, y, z and one more number, of each line."""
    check_index_size(path)
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            yield from _rows_of(csv.DictReader(file), path, last)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} is no CSV file: {error}", fix="save it as UTF-8") from error


def _rows_of(rows: csv.DictReader, path: Path, last: str) -> Iterator[tuple[str, list[float]]]:
    columns = list(rows.fieldnames or [])
    for column in ("seriesuid", *_PLACE, last):
        if column not in columns:
            raise DataError(
                f"{path} has no column {column!r}, but {', '.join(columns[:6]) or 'nothing'}",
                fix=did_you_mean(column, columns) if columns else "add a header",
            )
    for line, row in enumerate(rows, start=2):
        try:
            numbers = [read_number(row[column]) for column in (*_PLACE, last)]
        except ValueError:
            numbers = [math.nan]
        if not all(map(math.isfinite, numbers)):
            raise DataError(
                f"{path}, line {line}: coordinates or {last} are not numbers",
                fix="correct the line",
            )
        yield row["seriesuid"], numbers
