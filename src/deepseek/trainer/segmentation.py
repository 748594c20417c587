"""A class for every pixel or voxel: overlap and cross-entropy together.

Papers: Milletari et al. 2016 (soft Dice), arXiv 1606.04797, eq. 3; Isensee et al. 2018 (nnU-Net:
Dice and cross-entropy, and losses at several resolutions), arXiv 1809.10486, section 2.3.
Departures: no squares in the denominator; the overlap is taken of each sample, not of a batch, so
that a loss is a sum over samples and a batch in parts learns what it learns as one.

Shapes: B batch, K classes, V pixels or voxels, of any dims.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from deepseek.datasets import DataSpec
from deepseek.errors import ConfigError
from deepseek.trainer.metrics import Mean, Metric
from deepseek.trainer.task import IGNORE_INDEX, Batch, Task

SMOOTHING = 1e-5
"""Added to both sides of an overlap: a class that is nowhere, and is predicted nowhere, has 1."""


class SegmentationTask(Task):
    """Logits (B, K, ...) with labels (B, ...): soft Dice and cross-entropy, summed over samples.

    A model that gives several outputs in training (deep supervision) gives the finest first; each
    next one weighs half as much, all together 1, with labels of its own resolution. A label of
    -100 is not counted.

    Args:
        num_classes: K.
        label_smoothing: probability spread over all classes, in the cross-entropy of training.
        background: whether class 0 is what is not looked for: no overlap is taken of it.
    """

    monitor = "val_dice"
    higher_is_better = True

    def __init__(
        self, num_classes: int, label_smoothing: float = 0.0, *, background: bool = True
    ) -> None:
        if num_classes < 2:
            raise ConfigError(
                f"num_classes={num_classes} of a segmentation is below 2",
                fix="count the background as a class",
            )
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.first_class = int(background)

    def loss(self, outputs: Tensor | Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the loss summed over samples, in float32."""
        levels = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        weights = [0.5**level for level in range(len(levels))]
        losses = [
            weight / sum(weights) * self._sample_losses(logits, batch["targets"]).sum()
            for weight, logits in zip(weights, levels, strict=True)
        ]
        return torch.stack(losses).sum()

    def _sample_losses(
        self, logits: Float[Tensor, "B K ..."], labels: Int[Tensor, "B ..."]
    ) -> Float[Tensor, "B"]:
        if labels.shape[1:] != logits.shape[2:]:
            shrunk = F.interpolate(labels[:, None].float(), logits.shape[2:], mode="nearest")
            labels = shrunk[:, 0].to(labels.dtype)
        logits = logits.float()
        crossed = _cross_entropy(logits, labels, self.label_smoothing)
        overlaps = self._overlaps(logits.softmax(1), labels)
        return crossed + 1 - overlaps.mean(1)

    def _overlaps(
        self, probs: Float[Tensor, "B K ..."], labels: Int[Tensor, "B ..."]
    ) -> Float[Tensor, "B C"]:
        """Return the Dice coefficient of each sample and class, in 0..1."""
        is_counted = (labels != IGNORE_INDEX)[:, None]
        known = F.one_hot(labels.clamp(min=0), self.num_classes).movedim(-1, 1) * is_counted
        probs = (probs * is_counted)[:, self.first_class :].flatten(2)
        known = known[:, self.first_class :].flatten(2)
        shared = (probs * known).sum(2)
        return (2 * shared + SMOOTHING) / (probs.sum(2) + known.sum(2) + SMOOTHING)

    def new_metrics(self) -> dict[str, Metric]:
        """Loss, the share of voxels that are right, and Dice over samples and their classes."""
        return {"loss": Mean(), "accuracy": Mean(), "dice": Mean()}

    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch. Dice is of what is predicted, and of classes that are there or predicted."""
        labels, logits = batch["targets"], outputs.float()
        is_counted = labels != IGNORE_INDEX
        crossed = _cross_entropy(logits, labels, 0.0)
        soft = self._overlaps(logits.softmax(1), labels).mean(1)
        metrics["loss"].update((crossed + 1 - soft).sum(), len(labels))
        found = logits.argmax(1)
        is_right = ((found == labels) & is_counted).sum()
        metrics["accuracy"].update(is_right, int(is_counted.sum()))
        hard = F.one_hot(found, self.num_classes).movedim(-1, 1).float()
        overlaps = self._overlaps(hard, labels)
        is_there = self._is_there(hard, labels)
        metrics["dice"].update((overlaps * is_there).sum(), int(is_there.sum()))

    def _is_there(self, hard: Tensor, labels: Tensor) -> Tensor:
        """Return which classes are in the labels or in the prediction of each sample."""
        is_counted = (labels != IGNORE_INDEX)[:, None]
        known = F.one_hot(labels.clamp(min=0), self.num_classes).movedim(-1, 1)
        either = ((hard + known) * is_counted)[:, self.first_class :]
        return either.flatten(2).sum(2) > 0

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (B,) and `dice` (B, C), of each class but the background."""
        logits, labels = outputs.float(), batch["targets"]
        soft = self._overlaps(logits.softmax(1), labels).mean(1)
        hard = F.one_hot(logits.argmax(1), self.num_classes).movedim(-1, 1).float()
        return {
            "loss": _cross_entropy(logits, labels, 0.0) + 1 - soft,
            "dice": self._overlaps(hard, labels),
        }


def _cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Float[Tensor, "B"]:
    """Return the mean over the voxels of each sample."""
    losses = F.cross_entropy(
        logits, labels, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing,
        reduction="none",
    )  # fmt: skip
    counts = (labels != IGNORE_INDEX).flatten(1).sum(1).clamp(min=1)
    return losses.flatten(1).sum(1) / counts


def segmentation(spec: DataSpec, label_smoothing: float) -> Task:
    """Return the task of a data set whose `spec.task` is "segmentation"."""
    return SegmentationTask(spec.num_classes, label_smoothing)
