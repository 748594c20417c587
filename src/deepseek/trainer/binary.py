"""Yes or no: one logit per sample, and how well it ranks.

Shapes: B batch.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.datasets import DataSpec
from deepseek.errors import ConfigError
from deepseek.trainer.metrics import Mean, Metric
from deepseek.trainer.task import Batch, Task

NUM_BINS = 1 << 16


class BinaryTask(Task):
    """Logits (B,) or (B, 1) with labels 0 or 1 (B,): logarithmic loss.

    A label of NaN is missing: it is not counted.

    Args:
        label_smoothing: probability that is spread over both answers, in training only.
    """

    monitor = "val_auc"
    higher_is_better = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def count_items(self, batch: Batch) -> int:
        """Return the number of samples that have a label."""
        return int((~batch["targets"].isnan()).sum())

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss summed over samples, in float32."""
        return _losses(outputs, batch, self.label_smoothing).sum()

    def new_metrics(self) -> dict[str, Metric]:
        """Loss (nats), area under the ROC curve, accuracy, and calibration.

        Calibration is the mean of the probabilities, divided by the share of yes; 1 at best.
        """
        return {"loss": Mean(), "auc": AreaUnderCurve(), "accuracy": Mean(), "calibration": Ratio()}

    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch."""
        is_known = ~batch["targets"].isnan()
        logits, labels = _logits(outputs, batch)[is_known], batch["targets"].float()[is_known]
        count = len(labels)
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        metrics["loss"].update(losses, count)
        metrics["auc"].update(count_by_score(logits, labels), count)
        metrics["accuracy"].update(((logits > 0) == (labels > 0.5)).sum(), count)
        sums = torch.stack([logits.double().sigmoid().sum(), labels.double().sum()])
        metrics["calibration"].update(sums, count)

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return `prob` of yes, `target` and `loss`, (B,) each."""
        return {
            "prob": _logits(outputs, batch).sigmoid(),
            "target": batch["targets"].float(),
            "loss": _losses(outputs, batch, 0.0),
        }


def _logits(outputs: Tensor, batch: Batch) -> Tensor:
    logits = outputs.float()
    if logits.ndim == 2 and logits.shape[1] == 1:
        logits = logits[:, 0]
    if logits.shape != batch["targets"].shape:
        raise ConfigError(
            f"outputs of shape {tuple(outputs.shape)} for labels {tuple(batch['targets'].shape)}:"
            " yes or no takes one logit for each sample",
            fix="let the model return (B,) or (B, 1)",
        )
    return logits


def _losses(outputs: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    labels = batch["targets"].float()
    is_known = ~labels.isnan()
    labels = torch.where(is_known, labels, 0.0) * (1 - label_smoothing) + label_smoothing / 2
    logits = _logits(outputs, batch)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * is_known


def count_by_score(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many samples of no and of yes have each score, int64 (2, 65536).

    A score is a logit in bfloat16, whose 65,536 values are in order: those that differ by less
    than 0.4 % count as equal.
    """
    bits = logits.to(torch.bfloat16).view(torch.int16).int()
    order = torch.where(bits < 0, -(bits & 0x7FFF), bits) + NUM_BINS // 2
    places = order.long() + NUM_BINS * (labels > 0.5).long()
    return torch.bincount(places, minlength=2 * NUM_BINS).view(2, NUM_BINS)


class AreaUnderCurve(Metric):
    """The chance that a yes has a higher score than a no; equal scores count half."""

    def __init__(self) -> None:
        self.total: Tensor = torch.zeros(2, NUM_BINS, dtype=torch.int64)

    def update(self, total: Tensor, count: int) -> None:
        """Add what `count_by_score` returns."""
        self.total = self.total.to(total.device) + total

    def compute(self) -> float:
        """Return the area in 0..1; NaN where all samples are alike."""
        no, yes = self.total.double().cpu()
        pairs = float(no.sum() * yes.sum())
        below = no.cumsum(0) - no
        return float((yes * (below + no / 2)).sum()) / pairs if pairs else math.nan

    def sums(self) -> list[float]:
        """Return the counts."""
        return self.total.flatten().double().tolist()

    def take_sums(self, sums: Sequence[float]) -> None:
        """Replace the counts."""
        self.total = torch.tensor(sums, dtype=torch.float64).long().view(2, NUM_BINS)


class Ratio(Metric):
    """One sum divided by another."""

    def __init__(self) -> None:
        self.total: Tensor = torch.zeros(2, dtype=torch.float64)

    def update(self, total: Tensor, count: int) -> None:
        """Add both sums, (2,)."""
        self.total = self.total.to(total.device) + total.detach()

    def compute(self) -> float:
        """Return the ratio; NaN where the second sum is zero."""
        above, below = self.total.tolist()
        return above / below if below else math.nan

    def sums(self) -> list[float]:
        """Return both sums."""
        return self.total.tolist()

    def take_sums(self, sums: Sequence[float]) -> None:
        """Replace both sums."""
        self.total = torch.tensor(sums, dtype=torch.float64)


def make_task(spec: DataSpec, label_smoothing: float) -> Task:
    """Return the task of a data set whose `spec.task` is "binary"."""
    del spec
    return BinaryTask(label_smoothing)
