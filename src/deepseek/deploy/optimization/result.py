"""What an optimisation found: a row for each candidate, the front, and the choice."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deepseek.deploy.artefact import load_engine
from deepseek.deploy.optimization.candidate import Candidate
from deepseek.deploy.optimization.quality import Quality, is_share
from deepseek.deploy.optimization.turns import Timing
from deepseek.models import ModelEngine

TARGETS = ("latency", "throughput", "size", "memory")
SAME = {"latency": 0.03, "throughput": 0.03, "size": 0.01, "memory": 0.02}
"""Difference up to which the simpler of two candidates is taken, where it is within the error."""
KEPT, REJECTED, FAILED, SKIPPED = "kept", "rejected", "failed", "skipped"


@dataclass(frozen=True)
class Batch:
    """Batches of one size.

    Attributes:
        size: samples.
        timing: of one of them, beside the original's of that size.
        share: samples a second of the original in batches of this size, as a share of what it
            has in the largest: by it sizes are compared.
    """

    size: int
    timing: Timing
    share: float = 1.0

    @property
    def samples_per_s(self) -> float:
        """Samples in a second."""
        return self.size / self.timing.seconds

    @property
    def gain(self) -> float:
        """How many times the throughput is that of the original in its largest batches."""
        return self.timing.ratio * self.share


@dataclass(frozen=True)
class Row:
    """What is known of a candidate.

    Attributes:
        candidate: what it is.
        status: `kept` (inside the tolerance), `rejected`, `failed` or `skipped`.
        reason: why it is not kept, or what is to be known of it.
        one: time of a single sample, beside the original's.
        batches: times of larger batches, by size.
        quality: by the metric.
        file_bytes: of what is to be deployed.
        peak_bytes: largest memory of a process that opened it and computed both batches.
        ready_s: from opening the file to the first answer.
        convert_s: of converting it.
        difference: largest one of an output from the original's, as a share of the largest.
        fused: operators that were made one before it was converted, in words.
    """

    candidate: Candidate
    status: str
    reason: str = ""
    one: Timing | None = None
    batches: tuple[Batch, ...] = ()
    quality: Quality | None = None
    file_bytes: int = 0
    peak_bytes: int = 0
    ready_s: float = 0.0
    convert_s: float = 0.0
    difference: float = 0.0
    fused: tuple[str, ...] = ()

    @property
    def is_measured(self) -> bool:
        """Whether there are figures."""
        return self.one is not None

    @property
    def fastest(self) -> Batch | None:
        """The size of batches with the largest throughput."""
        return max(self.batches, key=lambda batch: batch.gain, default=None)

    @property
    def samples_per_s(self) -> float:
        """Samples in a second, in the batches that are best for it."""
        return self.fastest.samples_per_s if self.fastest else math.nan

    def cost(self, target: str) -> float:
        """Return what is to be small; times are relative to the original's beside it."""
        if self.one is None or self.fastest is None:
            return math.inf
        return {
            "latency": 1 / self.one.ratio,
            "throughput": 1 / self.fastest.gain,
            "size": float(self.file_bytes),
            "memory": float(self.peak_bytes),
        }[target]

    def error(self, target: str) -> float:
        """Return how far the cost may be off, as a share."""
        many = self.fastest.timing if self.fastest else None
        timing = {"latency": self.one, "throughput": many}.get(target)
        return timing.error if timing else SAME[target]

    def to_json(self) -> dict:
        """Return it as data."""
        found = {**asdict(self), "name": self.candidate.name}
        if self.fastest:
            found |= {"batch_size": self.fastest.size, "samples_per_s": self.samples_per_s}
        return found


@dataclass(frozen=True)
class Optimization:
    """The outcome of `optimize`.

    Attributes:
        best: what was chosen.
        rows: of all candidates, the original first.
        target: what it was chosen for.
        tolerance: largest drop of the metric.
        metric: its name.
        num_samples: that it was measured on.
        path: file of the best, which `load_engine` opens.
        report: page with everything.
        notes: what is to be known of the result.
    """

    best: Row
    rows: tuple[Row, ...]
    target: str
    tolerance: float
    metric: str
    num_samples: int
    path: Path
    report: Path
    notes: tuple[str, ...] = ()

    @property
    def front(self) -> tuple[Row, ...]:
        """The rows that no other beats: in latency, throughput, size, memory and metric at once."""
        return find_front(self.rows)

    @property
    def front_of_batches(self) -> tuple[tuple[Row, Batch], ...]:
        """Candidate and size that no other beats in the time and in the throughput of a batch."""
        places = [(row, each) for row in self.rows if row.status == KEPT for each in row.batches]
        costs = [(each.timing.seconds, -each.samples_per_s) for _, each in places]
        return tuple(
            place for place, own in zip(places, costs, strict=True) if not _is_beaten(own, costs)
        )

    def load(self) -> ModelEngine:
        """Open the best."""
        return load_engine(self.path)

    def describe(self) -> str:
        """Return it in words: a line for each candidate, then the choice."""
        width = max(len(row.candidate.name) for row in self.rows)
        lines = [f"{row.candidate.name:<{width}}  {figures(row, self.metric)}" for row in self.rows]
        chosen = f"best for {self.target}: {self.best.candidate.name}, {self.path}"
        return "\n".join([*lines, chosen, *self.notes])


def figures(row: Row, metric: str) -> str:
    """Return a row's figures in words, or why there are none."""
    if row.one is None or row.fastest is None or row.quality is None:
        return f"{row.status}: {row.reason}"
    several = f" in batches of {row.fastest.size}" if len(row.batches) > 1 else ""
    drop = round(100 * row.quality.drop, 2) + 0.0  # no "-0.00"
    change = f"{0 - drop:+.2f} points" if is_share(metric) else f"{drop:+.2f} %"
    parts = [
        f"{1000 * row.one.seconds:.2f} ms ({row.one.ratio:.2f}x)",
        f"{row.samples_per_s:,.0f}/s{several} ({row.fastest.timing.ratio:.2f}x)",
        f"{row.file_bytes / 1e6:.1f} MB", f"{row.peak_bytes / 1e6:,.0f} MB of memory",
        f"{metric} {row.quality.value:.4f} ({change})",
    ]  # fmt: skip
    if row.reason:
        parts.append(f"{row.status}: {row.reason}" if row.status != KEPT else row.reason)
    return ", ".join(parts)


def choose(rows: Sequence[Row], target: str) -> Row:
    """Return the best of the kept rows; the simplest of those that do not differ from it."""
    kept = [row for row in rows if row.status == KEPT]
    best = min(kept, key=lambda row: row.cost(target))

    def is_same(row: Row) -> bool:
        off = row.cost(target) / best.cost(target) - 1
        return off <= min(SAME[target], math.hypot(row.error(target), best.error(target)))

    return min(filter(is_same, kept), key=lambda row: (row.candidate.effort, row.cost(target)))


def find_front(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the measured rows that no other is at least as good as in all, and better in one."""
    measured = [row for row in rows if row.is_measured and row.quality is not None]
    costs = [_costs(row) for row in measured]
    return tuple(
        row for row, own in zip(measured, costs, strict=True) if not _is_beaten(own, costs)
    )


def _is_beaten(own: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> bool:
    """Return whether another is nowhere worse and somewhere better."""
    return any(
        all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in others
    )


def _costs(row: Row) -> tuple[float, ...]:
    drop = row.quality.drop if row.quality else math.inf
    return (*(row.cost(target) for target in TARGETS), drop)
