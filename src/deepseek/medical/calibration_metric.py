"""Calibration of voxels as a metric of evaluation: `deepseek evaluate --metrics calibration`.

Shapes: B volumes, K classes, D H W voxels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepseek.medical.calibration import LEAST, VoxelCalibration
from deepseek.trainer.extra_metrics import ExtraMetric
from deepseek.trainer.metrics import Metric
from deepseek.trainer.segmentation import SegmentationTask, as_segmentation
from deepseek.trainer.task import Batch, Task


class CalibrationMetric(Metric):
    """The expected or the largest error of the probabilities of voxels.

    Args:
        task: that says which classes there are.
        is_largest: which of the two.
    """

    def __init__(self, task: SegmentationTask, is_largest: bool) -> None:
        self.counts = VoxelCalibration(task.num_classes, least=LEAST)
        self._first_class, self._is_largest = task.first_class, is_largest

    def update(self, total: Tensor, count: int) -> None:
        """Add the counts of a batch, as `sums` gives them."""
        self.take_sums((total + torch.tensor(self.sums(), dtype=total.dtype)).tolist())

    def compute(self) -> float:
        """Return the error; NaN where no voxel counts."""
        return self.counts.errors(self._first_class)[self._is_largest]

    def sums(self) -> list[float]:
        """Return all counts."""
        return self.counts.sums

    def take_sums(self, sums: Sequence[float]) -> None:
        """Replace the counts."""
        self.counts.take_sums(sums)


class Calibration(ExtraMetric):
    """`ece`, the mean over classes of the expected error, and `mce`, the largest of a bin.

    Of each class against all others, of voxels with a probability of 0.01 and more.

    Args:
        task: of the model.

    Raises:
        ConfigError: the model finds no class for each voxel.
    """

    def __init__(self, task: Task) -> None:
        self._task = as_segmentation(task, "calibration of voxels")

    def new_metrics(self) -> dict[str, Metric]:
        """Return both errors."""
        return {
            "ece": CalibrationMetric(self._task, False),
            "mce": CalibrationMetric(self._task, True),
        }

    def update(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add logits (B, K, D, H, W) and labels (B, D, H, W)."""
        counts = VoxelCalibration(self._task.num_classes, least=LEAST)
        probs = outputs.float().softmax(1).cpu().numpy()
        for own, labels in zip(probs, batch["targets"].cpu().numpy(), strict=True):
            counts.update(own, labels)
        total = torch.tensor(counts.sums, dtype=torch.float64)
        for name in ("ece", "mce"):
            metrics[name].update(total, len(probs))
