"""Fit the planner's constants on a stated few published rows (those marked `is_fitted`).

Least squares on logarithms of predicted over published; each constant starts from what hardware
suggests, is held near it by a weak pull, and cannot leave a plausible range. Needs scipy.

```
python benchmarks/planner_fit.py --data ../shared/published
```
"""

import argparse
from dataclasses import replace
from math import log

from scipy.optimize import least_squares

from deepseek.planner.constants import CALIBRATION, Calibration
from planner_rows import read_rows
from planner_validation import evaluate, find_data, report

RANGES: dict[str, tuple[float, float, float]] = {
    # name: (what hardware suggests, lowest, highest)
    "matmul_share": (0.95, 0.85, 1.0),
    "wave_start_s": (2e-6, 0.5e-6, 6e-6),
    "wave_rounding": (0.6, 0.3, 1.0),
    "flash1_share": (0.5, 0.35, 0.7),
    "flash_head_dim": (16.0, 4.0, 40.0),
    "hbm_share": (0.8, 0.6, 0.92),
    "link_share": (0.78, 0.7, 0.85),
    "node_share": (0.75, 0.55, 0.9),
    "overlap_share": (0.15, 0.05, 0.25),
    "overlap_passes": (3.0, 1.0, 5.0),
}
PULL = 0.05
"""How strongly a constant is held: being off by all of its value costs as much as 5 % in a row."""


def fit(rows: list, names: dict[str, tuple[float, float, float]]) -> Calibration:
    """Constants that come closest to the published numbers of `rows`."""
    starts = {name: start for name, (start, _, _) in names.items()}

    def build(factors: list[float]) -> Calibration:
        values = {name: factor * starts[name] for name, factor in zip(names, factors, strict=True)}
        return replace(CALIBRATION, **values)

    def residuals(factors: list[float]) -> list[float]:
        cal = build(factors)
        errors = [log(row.compute(cal) / row.published) for row in rows]
        return errors + [PULL * log(factor) for factor in factors]

    lowest = [low / start for start, low, _ in names.values()]
    highest = [high / start for start, _, high in names.values()]
    found = least_squares(
        residuals, [1.0] * len(names), bounds=(lowest, highest), loss="soft_l1", f_scale=0.05
    )
    return build(list(found.x))


def main() -> None:
    """Print fitted constants and the comparison under them."""
    parser = argparse.ArgumentParser(description="Fit the planner's constants.")
    parser.add_argument("--data", help="folder of the tables")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every row")
    arguments = parser.parse_args()
    rows, absent = read_rows(find_data(arguments.data))
    for name in absent:
        print(f"skipped: {name} is not there")
    chosen = [row for row in rows if row.is_fitted and row.is_timing]
    cal = fit(chosen, RANGES)
    print(f"fitted on {len(chosen)} rows")
    for name, (start, low, high) in RANGES.items():
        print(f"    {name}: {getattr(cal, name):.4g}  (from {start:g}, within {low:g}..{high:g})")
    print(report(evaluate(rows, cal), arguments.verbose))


if __name__ == "__main__":
    main()
