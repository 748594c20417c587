"""Numbers rather than classes: squared error.

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

    The loss of a sample is the mean over its numbers.
    """

    monitor = "val_r2"
    higher_is_better = True

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the squared error, summed over samples, in float32."""
        return _errors(outputs, batch).square().mean(1).sum()

    def new_metrics(self) -> dict[str, Metric]:
        """Loss (mean squared error), mean absolute error, and the share of variance explained."""
        return {"loss": Mean(), "mae": Mean(), "r2": ExplainedVariance()}

    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch."""
        errors, targets = _errors(outputs, batch), batch["targets"]
        metrics["loss"].update(errors.square().mean(1).sum(), len(targets))
        metrics["mae"].update(errors.abs().mean(1).sum(), len(targets))
        targets = targets.double()
        sums = [errors.double().square().sum(), targets.sum(), targets.square().sum()]
        metrics["r2"].update(torch.stack(sums), targets.numel())

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return `outputs` (B, K) and `targets`, float32, and `loss` (B,)."""
        return {
            "outputs": outputs.float(),
            "targets": batch["targets"].float(),
            "loss": _errors(outputs, batch).square().mean(1),
        }


def _errors(outputs: Tensor, batch: Batch) -> Tensor:
    """Return how far outputs are from targets, (B, K), float32."""
    outputs = outputs.reshape(len(outputs), -1)
    targets = batch["targets"].float().reshape(len(outputs), -1)
    if targets.shape != outputs.shape:
        raise ConfigError(
            f"a regression has outputs {tuple(outputs.shape)} for targets"
            f" {tuple(batch['targets'].shape)}",
            fix="give the head as many outputs as a sample has numbers",
        )
    return outputs.float() - targets


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
