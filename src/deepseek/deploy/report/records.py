"""Metric records: the lines of `metrics.jsonl` as columns of numbers.

A run may write a million lines, die in the middle of one, and repeat steps after a resume. Lines
are parsed in blocks (one parser call a block), kept as `array('d')` columns (8 bytes a value), and
what cannot be read is counted, never raised.

Shapes: R records of one kind.
"""

import json
import math
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Records:
    """All records of one kind.

    Args:
        columns: name -> float64 (R,); NaN where a record lacks the name or its value is no number.
        num_superseded: records left out because a resumed run went through their steps again.
    """

    columns: dict[str, np.ndarray]
    num_superseded: int = 0

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def axis(self) -> tuple[str, np.ndarray]:
        """Return the name and values, (R,), of what the records are drawn against."""
        for name in ("step", "epoch"):
            if name in self.columns and np.isfinite(self.columns[name]).any():
                return name, self.columns[name]
        return "record", np.arange(1, len(self) + 1, dtype=np.float64)

    def points(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the axis and the column `name` where both are finite; empty where it is absent."""
        if name not in self.columns:
            return np.empty(0), np.empty(0)
        x, y = self.axis()[1], self.columns[name]
        keep = np.isfinite(x) & np.isfinite(y)
        return x[keep], y[keep]

    def last(self, name: str) -> float | None:
        """Return the last finite value of `name`."""
        values = self.points(name)[1]
        return float(values[-1]) if len(values) else None


@dataclass
class _Columns:
    """Columns under construction: a name seen late is filled with NaN up to where it appears."""

    num_records: int = 0
    columns: dict[str, array] = field(default_factory=dict)

    def extend(self, rows: list[dict]) -> None:
        names = set(self.columns).union(*rows)
        for name in names:
            column = self.columns.get(name)
            if column is None:
                column = self.columns[name] = array("d", [math.nan]) * self.num_records
            values = [row.get(name, math.nan) for row in rows]
            try:
                column.extend(array("d", values))
            except (TypeError, OverflowError):
                column.extend([_as_number(value) for value in values])
        self.num_records += len(rows)

    def freeze(self) -> Records:
        columns = {name: np.array(column, np.float64) for name, column in self.columns.items()}
        columns = {name: values for name, values in columns.items() if not np.isnan(values).all()}
        keep = _not_superseded(columns.get("step"))
        if keep is None or keep.all():
            return Records(columns)
        kept = {name: values[keep] for name, values in columns.items()}
        return Records(kept, num_superseded=int((~keep).sum()))


def read_records(path: Path) -> tuple[dict[str, Records], list[int]]:
    """Read a file of JSON lines.

    Returns:
        The records by their `kind`, and the numbers (from 1) of the lines that are no JSON object.
    """
    by_kind: dict[str, _Columns] = defaultdict(_Columns)
    bad_lines: list[int] = []
    first_line = 1
    with path.open("rb") as file:
        while lines := file.readlines(BLOCK_BYTES):
            grouped: dict[str, list[dict]] = defaultdict(list)
            for row in parse_json_lines(lines, first_line, bad_lines):
                grouped[str(row.pop("kind", "unknown"))].append(row)
            for kind, rows in grouped.items():
                by_kind[kind].extend(rows)
            first_line += len(lines)
    return {kind: columns.freeze() for kind, columns in by_kind.items()}, bad_lines


def parse_json_lines(lines: list[bytes], first_line: int, bad_lines: list[int]) -> list[dict]:
    """Parse lines as JSON objects; the numbers of those that are none are added to `bad_lines`."""
    try:
        rows = json.loads(b"[" + b",".join(lines) + b"]")
        if len(rows) == len(lines) and all(type(row) is dict for row in rows):
            return rows
    except (ValueError, RecursionError):
        pass  # one of them is broken: find out which
    rows = []
    for number, line in enumerate(lines, first_line):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad_lines.append(number)
    return rows


def _as_number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def _not_superseded(step: np.ndarray | None) -> np.ndarray | None:
    """Return a mask, bool (R,): no later record has this record's step or an earlier one."""
    if step is None or len(step) < 2:
        return None
    filled = np.where(np.isnan(step), np.inf, step)
    least_later = np.minimum.accumulate(filled[::-1])[::-1]
    keep = np.ones(len(step), bool)
    keep[:-1] = np.isnan(step[:-1]) | (filled[:-1] < least_later[1:])
    return keep
