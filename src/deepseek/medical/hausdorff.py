"""The 95 % Hausdorff distance as a metric of evaluation: `deepseek evaluate --metrics hd95`.

Shapes: B volumes, D H W voxels.
"""

import math

import numpy as np
import torch
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.medical.segmentation_scores import IGNORE_INDEX, hausdorff_mm
from deepseek.trainer.extra_metrics import ExtraMetric
from deepseek.trainer.metrics import Mean, Metric
from deepseek.trainer.segmentation import as_segmentation
from deepseek.trainer.task import Batch, Task


class Hausdorff(ExtraMetric):
    """`hd95`, the mean distance over volumes and their classes, in mm, and `hd95_missing`.

    The latter is the share of classes that are in the labels or in the prediction alone: they have
    no distance, and do not count in the mean. Needs scipy.

    Args:
        task: of the model.

    Raises:
        ConfigError: the model finds no class for each voxel.
    """

    def __init__(self, task: Task) -> None:
        known = as_segmentation(task, "hd95")
        self._classes = range(known.first_class, known.num_classes)

    def new_metrics(self) -> dict[str, Metric]:
        """Return the distance, and the share of classes that have none."""
        return {"hd95": Mean(), "hd95_missing": Mean()}

    def update(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add whole volumes: logits (B, K, D, H, W), labels (B, D, H, W), spacings (B, 3).

        Raises:
            ConfigError: the data do not say how large their voxels are.
        """
        if "spacing_mm" not in batch:
            raise ConfigError(
                "hd95 is a distance in mm, and the data have no spacing_mm",
                fix="evaluate on a VolumeDataset: data.format=volume",
            )
        known = batch["targets"].cpu().numpy()
        found = np.where(known == IGNORE_INDEX, IGNORE_INDEX, outputs.argmax(1).cpu().numpy())
        distances = [
            hausdorff_mm(found[number] == label, known[number] == label, spacing)
            for number, spacing in enumerate(batch["spacing_mm"].tolist())
            for label in self._classes
        ]
        there = [each for each in distances if not math.isnan(each)]
        measured = [each for each in there if math.isfinite(each)]
        metrics["hd95"].update(torch.tensor(sum(measured), dtype=torch.float64), len(measured))
        metrics["hd95_missing"].update(torch.tensor(len(there) - len(measured)), len(there))
