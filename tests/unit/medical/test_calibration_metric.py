"""`--metrics calibration` counts what `VoxelCalibration` counts, of all batches and processes."""

import math

import numpy as np
import pytest
import torch

from deepseek.errors import ConfigError
from deepseek.medical.calibration import LEAST, VoxelCalibration
from deepseek.trainer.extra_metrics import MeasuredTask
from deepseek.trainer.segmentation import SegmentationTask
from deepseek.trainer.task import ClassificationTask


def batches():
    draws = torch.Generator().manual_seed(0)
    for count in (2, 1):
        outputs = 3 * torch.randn(count, 3, 5, 6, 7, generator=draws)
        labels = torch.randint(0, 3, (count, 5, 6, 7), generator=draws)
        labels[:, 0] = -100
        yield outputs, {"targets": labels}


def test_errors_are_those_of_all_volumes():
    task, direct = MeasuredTask(SegmentationTask(3), ["calibration"]), VoxelCalibration(3)
    direct.least = LEAST
    metrics = task.new_metrics()
    assert math.isnan(metrics["ece"].compute())
    for outputs, batch in batches():
        task.update_metrics(metrics, outputs, batch)
        for probs, labels in zip(outputs.softmax(1).numpy(), batch["targets"].numpy(), strict=True):
            direct.update(probs, labels)
    each = [direct.of_class(number) for number in (1, 2)]
    assert metrics["ece"].compute() == pytest.approx(np.mean([found.ece for found in each]))
    assert metrics["mce"].compute() == pytest.approx(max(found.mce for found in each))


def test_sums_of_two_processes_are_those_of_one():
    task = MeasuredTask(SegmentationTask(3), ["calibration"])
    parts = [task.new_metrics(), task.new_metrics()]
    whole, joint = task.new_metrics(), task.new_metrics()
    for part, (outputs, batch) in zip(parts, batches(), strict=True):
        for metrics in (part, whole):
            task.update_metrics(metrics, outputs, batch)
    joint["ece"].take_sums(np.sum([part["ece"].sums() for part in parts], 0).tolist())
    assert joint["ece"].compute() == pytest.approx(whole["ece"].compute())


def test_it_is_of_segmentations_alone():
    with pytest.raises(ConfigError, match="says nothing of ClassificationTask"):
        MeasuredTask(ClassificationTask(3), ["calibration"])
