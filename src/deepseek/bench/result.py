"""What a bench found: rates of the machine, and of training with our defaults."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rate:
    """One thing that the machine does, and how fast.

    Attributes:
        name: of what was measured, such as `matmul bf16`.
        value: in `unit`; the best of some calls.
        unit: `TFLOP/s`, `GB/s`, `MB/s` or `images/s`; 10^12, 10^9, 10^6.
        remark: on what: sizes, processes, place.
    """

    name: str
    value: float
    unit: str
    remark: str


@dataclass(frozen=True)
class TrainingRate:
    """Training of a standard model with our defaults.

    Attributes:
        model: name and sizes.
        batch: of a step.
        precision: that the defaults chose.
        step_s: seconds of a step, the mean of those that were timed.
        samples_per_s: of those.
        tflops: of the model, forward and backward, per second; a multiply-add is two.
        matmul_share: `tflops` by the best matrix product of this machine in that precision; `None`
            where that was not measured.
        data_wait_share: of the time, spent waiting for data.
        num_steps: that were timed.
    """

    model: str
    batch: str
    precision: str
    step_s: float
    samples_per_s: float
    tflops: float
    matmul_share: float | None
    data_wait_share: float
    num_steps: int


@dataclass
class BenchResult:
    """All that was measured.

    Attributes:
        machine: chip, threads, versions.
        rates: of the machine.
        training: of the standard models.
        left_out: what was not measured, and why.
        warnings: what may have made it slower, by the checks of `deepseek doctor`.
        budget_s, took_s: seconds allowed, and used.
    """

    machine: dict[str, str]
    budget_s: float
    rates: list[Rate] = field(default_factory=list)
    training: list[TrainingRate] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    took_s: float = 0.0

    def matmul_tflops(self, precision: str) -> float | None:
        """Return the rate of matrix products in `precision`, `None` where it was not measured."""
        rates = {rate.name: rate.value for rate in self.rates}
        return rates.get(f"matmul {precision}")

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)
