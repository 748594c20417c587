"""Hold `deepseek.planner.predict` against published measurements: one line for each table.

```
python benchmarks/planner_validation.py --data ../shared/published        # mean and worst error
python benchmarks/planner_validation.py -v                                # every row
```
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from deepseek.planner.constants import CALIBRATION, Calibration
from planner_rows import Row, read_rows

DEFAULT_DATA = Path(__file__).resolve().parents[1] / "../shared/published"


@dataclass(frozen=True)
class Result:
    """One row, predicted."""

    row: Row
    predicted: float

    @property
    def error(self) -> float:
        """Relative: 0.05 is 5 % too high."""
        return self.predicted / self.row.published - 1


def find_data(given: str | None) -> Path:
    """The folder of published tables: as given, by `$DEEPSEEK_PUBLISHED`, or beside the code."""
    return Path(given or os.environ.get("DEEPSEEK_PUBLISHED") or DEFAULT_DATA).resolve()


def evaluate(rows: Sequence[Row], cal: Calibration = CALIBRATION) -> dict[str, list[Result]]:
    """Predictions of all rows by table."""
    tables: dict[str, list[Result]] = defaultdict(list)
    for row in rows:
        tables[row.table].append(Result(row, row.compute(cal)))
    return dict(tables)


def summarise(results: Sequence[Result]) -> tuple[float, float]:
    """Mean and worst absolute error, in per cent."""
    errors = [100 * abs(result.error) for result in results]
    return sum(errors) / len(errors), max(errors)


def count_winners(results: Sequence[Result]) -> tuple[int, int]:
    """Groups in which the fastest by prediction is the fastest as published, and all groups."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.row.group:
            groups[result.row.group].append(result)
    right = sum(
        max(group, key=lambda r: r.predicted) is max(group, key=lambda r: r.row.published)
        for group in groups.values()
    )
    return right, len(groups)


def report(tables: dict[str, list[Result]], is_verbose: bool) -> str:
    """One line for each table, and with `is_verbose` one for each row."""
    lines = []
    for name, results in tables.items():
        mean, worst = summarise(results)
        fitted = sum(result.row.is_fitted for result in results)
        note = f"  ({fitted} fitted)" if fitted else ""
        lines.append(f"{name:<54} {len(results):>4}  mean {mean:.2f} %  worst {worst:.2f} %{note}")
        if is_verbose:
            lines += [_describe(result) for result in results]
        right, groups = count_winners(results)
        if groups:
            lines.append(f"{name.split(',')[0] + ', winner':<54} {groups:>4}  right in {right}")
    return "\n".join(lines)


def _describe(result: Result) -> str:
    if not result.row.is_timing and not result.row.table.startswith("MAMF"):
        how = "closed form"
    else:
        how = "fitted" if result.row.is_fitted else "held out"
    return (
        f"    {result.row.name:<48} predicted {result.predicted:>10.4g}"
        f"  published {result.row.published:>10.4g}  {100 * result.error:>+7.2f} %  {how}"
    )


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description="Hold the planner against published tables.")
    parser.add_argument("--data", help=f"folder of the tables (default {DEFAULT_DATA})")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every row")
    arguments = parser.parse_args()
    folder = find_data(arguments.data)
    rows, absent = read_rows(folder)
    start = perf_counter()
    tables = evaluate(rows)
    seconds = perf_counter() - start
    if tables:
        print(report(tables, arguments.verbose))
        print(f"{len(rows)} rows in {seconds:.2f} s")
    for name in absent:
        print(f"skipped: {folder / name} is not there")


if __name__ == "__main__":
    main()
