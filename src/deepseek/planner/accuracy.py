"""How far predictions were from published measurements: what `deepseek plan` prints below a table.

Printed by `benchmarks/planner_validation.py` on 2026-11-25 at commit 2206d55; a test holds these
numbers against what it prints today.
"""

from typing import NamedTuple


class TableError(NamedTuple):
    """Errors over the rows of one published table."""

    table: str
    """The words that the line of `planner_validation.py` begins with."""
    num_rows: int
    mean: float
    """Absolute, in per cent."""
    worst: float
    num_fitted: int = 0
    """Of the rows, those that constants were fitted on."""
    is_timing: bool = True
    """A measured time or rate, not memory or a count."""


VALIDATION = (
    TableError("Korthikanti table 5, step s", 8, 2.28, 5.98, 3),
    TableError("Korthikanti figure 1, GiB", 12, 1.07, 6.54, is_timing=False),
    TableError("Korthikanti figure 7, %", 16, 0.28, 1.10, is_timing=False),
    TableError("Korthikanti table 4, ms of a block", 5, 7.14, 8.74),
    TableError("SC'21 table 1, TFLOP/s", 10, 3.20, 7.92, 2),
    TableError("SC'21 table 2, TFLOP/s", 12, 3.81, 16.40, 1),
    TableError("Megatron 2020, step s", 12, 4.37, 12.46, 1),
    TableError("MPT, FLOP accounting", 139, 0.02, 0.22, is_timing=False),
    TableError("MPT, step s, fitted", 11, 1.79, 3.53, 11),
    TableError("MPT, step s, held out", 128, 4.39, 26.32),
    TableError("fms-fsdp, step s", 8, 3.45, 6.97, 3),
    TableError("MAMF, TFLOP/s of the best product", 10, 0.41, 4.12, 9, is_timing=False),
)
"""In the order they are printed."""


def summarise_timings() -> tuple[int, float, float]:
    """Return the number of published timings, and their mean and worst error in per cent."""
    timings = [entry for entry in VALIDATION if entry.is_timing]
    count = sum(entry.num_rows for entry in timings)
    mean = sum(entry.num_rows * entry.mean for entry in timings) / count
    return count, mean, max(entry.worst for entry in timings)


def describe_error() -> str:
    """Return the published error in one sentence."""
    count, mean, worst = summarise_timings()
    memory = next(entry for entry in VALIDATION if entry.table == "Korthikanti figure 1, GiB")
    return (
        f"Against {count} published timings the step is off by {mean:.1f} % on average and"
        f" {worst:.0f} % at worst (A100 and H100; worst where memory was almost full); memory,"
        f" against {memory.num_rows} figures, by {memory.mean:.1f} % and {memory.worst:.1f} %."
    )
