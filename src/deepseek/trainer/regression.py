"""Numbers rather than classes: squared error.

A number that is missing is NaN, and counts nowhere.

Shapes: B batch, K numbers of a sample.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek.datasets import DataSpec
from deepseek.errors import ConfigError
from deepseek.trainer.metrics import Mean, Metric
from deepseek.trainer.task import Batch, Task


class RegressionTask(Task):
    """One number per sample, or several: squared error of outputs (B, K) to targets (B,) or (B, K).

    The loss of a sample is the mean over its numbers that are not missing.
    """

    monitor = "val_r2"
    higher_is_better = True

    def count_items(self, batch: Batch) -> int:
        """Return how many samples have a number."""
        return int(_known(batch).any(1).sum())

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the squared error, summed over samples, in float32."""
        return _means(_errors(outputs, batch).square(), _known(batch)).sum()

    def new_metrics(self) -> dict[str, Metric]:
        """Loss (mean squared error), mean absolute error, and the share of variance explained."""
        return {"loss": Mean(), "mae": Mean(), "r2": ExplainedVariance()}

    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch."""
        errors, known = _errors(outputs, batch), _known(batch)
        num_samples, num_numbers = torch.stack([known.any(1).sum(), known.sum()]).tolist()
        metrics["loss"].update(_means(errors.square(), known).sum(), num_samples)
        metrics["mae"].update(_means(errors.abs(), known).sum(), num_samples)
        targets = batch["targets"].reshape(known.shape).double().where(known, 0.0)
        sums = [errors.double().square().sum(), targets.sum(), targets.square().sum()]
        metrics["r2"].update(torch.stack(sums), num_numbers)

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return `outputs` (B, K) and `targets`, float32, and `loss` (B,), NaN without a number."""
        known = _known(batch)
        losses = _means(_errors(outputs, batch).square(), known)
        return {
            "outputs": outputs.float(),
            "targets": batch["targets"].float(),
            "loss": losses.masked_fill(~known.any(1), math.nan),
        }


def _known(batch: Batch) -> Tensor:
    """Return which numbers are not missing, (B, K) bool."""
    return ~batch["targets"].isnan()[:, None].flatten(1)


def _means(values: Tensor, known: Tensor) -> Tensor:
    """Return the mean of each sample over its known numbers, (B,); the others are 0."""
    return values.sum(1) / known.sum(1).clamp(min=1)


def _errors(outputs: Tensor, batch: Batch) -> Tensor:
    """Return how far outputs are from targets, (B, K), float32; 0 where a target is missing."""
    outputs = outputs.reshape(len(outputs), -1)
    targets = batch["targets"].float().reshape(len(outputs), -1)
    if targets.shape != outputs.shape:
        raise ConfigError(
            f"a regression has outputs {tuple(outputs.shape)} for targets"
            f" {tuple(batch['targets'].shape)}",
            fix="give the head as many outputs as a sample has numbers",
        )
    # chosen before anything is squared: a NaN that is left out later has a gradient of NaN
    return torch.where(targets.isnan(), 0.0, outputs.float() - targets)


class ExplainedVariance(Metric):
    """R2: 1 less the squared error over that of the mean of the targets."""

    def __init__(self) -> None:
        self.total: Tensor = torch.zeros(3, dtype=torch.float64)
        self.count = 0

    def update(self, total: Tensor, count: int) -> None:
        """Add squared errors, targets and squared targets, summed over `count` numbers, (3,)."""
        self.total = self.total.to(total.device) + total.detach()
        self.count += count

    def compute(self) -> float:
        """Return R2, at most 1; NaN where the targets are all alike."""
        errors, total, squares = self.total.tolist()
        spread = squares - total**2 / self.count if self.count else 0.0
        return 1 - errors / spread if spread > 1e-12 * max(squares, 1e-300) else math.nan

    def sums(self) -> list[float]:
        """Return the three sums and the count."""
        return [*self.total.tolist(), float(self.count)]

    def take_sums(self, sums: Sequence[float]) -> None:
        """Replace them."""
        self.total, self.count = torch.tensor(sums[:3], dtype=torch.float64), round(sums[3])


def make_task(spec: DataSpec, label_smoothing: float) -> Task:
    """Return the task; smoothing is of classes."""
    del spec, label_smoothing
    return RegressionTask()
