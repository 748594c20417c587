"""A class for every pixel or voxel: a loss of overlap or of voxels, and Dice.

Paper: Isensee et al. 2018 (nnU-Net: losses at several resolutions), arXiv 1809.10486, section 2.3;
those of each loss are in `segmentation_losses`.

Shapes: B batch, K classes, V pixels or voxels, of any dims.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from deepseek.datasets import DataSpec
from deepseek.errors import ConfigError, DataError
from deepseek.trainer.metrics import Mean, Metric
from deepseek.trainer.segmentation_losses import make_segmentation_loss, tversky_overlaps
from deepseek.trainer.task import IGNORE_INDEX, Batch, Task


class SegmentationTask(Task):
    """Logits (B, K, ...) with labels (B, ...): a loss of each sample, summed.

    A model that gives several outputs in training (deep supervision) gives the finest first; each
    next one weighs half as much, all together 1, with labels of its own resolution. A label of
    -100 is not counted.

    Args:
        num_classes: K.
        label_smoothing: probability spread over all classes, in the cross-entropy of training.
        background: whether class 0 is what is not looked for: no overlap is taken of it.
        loss: `dice_ce`, `dice_focal`, `focal` or `tversky`, or one with settings:
            `{"name": "tversky", "alpha": 0.3, "beta": 0.7}`; `None`: `dice_ce`.

    Raises:
        ConfigError: there is one class, or no such loss or setting.
    """

    monitor = "val_dice"
    higher_is_better = True

    def __init__(
        self,
        num_classes: int,
        label_smoothing: float = 0.0,
        *,
        background: bool = True,
        loss: str | Mapping[str, Any] | None = None,
    ) -> None:
        if num_classes < 2:
            raise ConfigError(
                f"num_classes={num_classes} of a segmentation is below 2",
                fix="count the background as a class",
            )
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.first_class = int(background)
        self._training_loss = make_segmentation_loss(loss, label_smoothing)
        self._loss = make_segmentation_loss(loss)

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
        return self._training_loss(logits.float(), labels, self.first_class)

    def new_metrics(self) -> dict[str, Metric]:
        """Loss, the share of voxels that are right, and Dice over samples and their classes."""
        return {"loss": Mean(), "accuracy": Mean(), "dice": Mean()}

    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch. Dice is of what is predicted, and of classes that are there or predicted."""
        labels, logits = batch["targets"], outputs.float()
        is_counted = labels != IGNORE_INDEX
        metrics["loss"].update(self._loss(logits, labels, self.first_class).sum(), len(labels))
        found = logits.argmax(1)
        is_right = ((found == labels) & is_counted).sum()
        metrics["accuracy"].update(is_right, int(is_counted.sum()))
        hard = F.one_hot(found, self.num_classes).movedim(-1, 1).float()
        overlaps = tversky_overlaps(hard, labels, self.first_class)
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
        hard = F.one_hot(logits.argmax(1), self.num_classes).movedim(-1, 1).float()
        return {
            "loss": self._loss(logits, labels, self.first_class),
            "dice": tversky_overlaps(hard, labels, self.first_class),
        }


def choose_loss(task: Task, wanted: str | Mapping[str, Any] | None) -> Task:
    """Return the task with the loss that the settings want.

    Raises:
        ConfigError: the task has no such losses; no such loss or setting.
    """
    if wanted is None:
        return task
    if type(task) is not SegmentationTask:
        raise ConfigError(
            f"loss={wanted} would be ignored: {type(task).__name__} finds no class for each voxel",
            fix="leave it out: the task has a loss of its own",
        )
    return SegmentationTask(
        task.num_classes, task.label_smoothing, background=bool(task.first_class), loss=wanted
    )


def check_masks(task: Task, spec: DataSpec) -> None:
    """Refuse training data whose masks hold the background alone; a class of none is a warning.

    Raises:
        DataError: there is nothing to find.
    """
    counts = spec.class_counts
    if not isinstance(task, SegmentationTask) or not any(counts):
        return
    first = task.first_class
    missing = [
        name
        for name, count in zip(spec.class_names[first:], counts[first:], strict=True)
        if not count
    ]
    if len(missing) == len(counts) - first:
        raise DataError(
            f"the masks of the training data hold {sum(counts):,} voxels of"
            f" {spec.class_names[0]!r} and none of {', '.join(missing[:8])}: there is nothing to"
            " learn",
            fix="give masks with a class in them; were they copied, or resampled, to zeros?",
        )
    if missing:
        warnings.warn(
            f"no voxel of the training data is of {', '.join(missing[:8])}: a model learns never to"
            " find it",
            stacklevel=2,
        )


def segmentation(spec: DataSpec, label_smoothing: float) -> Task:
    """Return the task of a data set whose `spec.task` is "segmentation"."""
    return SegmentationTask(spec.num_classes, label_smoothing)


def as_segmentation(task: Task, metric: str) -> SegmentationTask:
    """Return a task as what it is, for a metric of segmentations.

    Raises:
        ConfigError: it is another task.
    """
    if not isinstance(task, SegmentationTask):
        raise ConfigError(
            f"{metric} says nothing of {type(task).__name__}: it finds no class for each voxel",
            fix="leave it out: it is of segmentations",
        )
    return task
