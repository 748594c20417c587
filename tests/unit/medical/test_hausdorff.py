import math

import numpy as np
import pytest
import torch

from deepseek.errors import ConfigError
from deepseek.medical.segmentation_scores import hausdorff_mm
from deepseek.trainer.extra_metrics import MeasuredTask
from deepseek.trainer.segmentation import SegmentationTask
from deepseek.trainer.task import ClassificationTask

SPACINGS = [[2.0, 1.0, 1.0], [1.0, 0.5, 0.5]]


def labels_of(seed):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (2, 6, 8, 8)))


def measure(found, known, **batch):
    task = MeasuredTask(SegmentationTask(3), ["hd95"])
    metrics = task.new_metrics()
    logits = torch.nn.functional.one_hot(found, 3).movedim(-1, 1).float()
    task.update_metrics(metrics, logits, {"targets": known, **batch})
    return {name: metric.compute() for name, metric in metrics.items()}


def test_it_is_the_mean_of_the_distances_of_all_volumes_and_classes():
    found, known = labels_of(0), labels_of(1)
    found[0][found[0] == 2] = 0  # a class that is not found
    expected = [
        hausdorff_mm((found[n] == label).numpy(), (known[n] == label).numpy(), SPACINGS[n])
        for n, label in ((0, 1), (1, 1), (1, 2))
    ]
    measured = measure(found, known, spacing_mm=torch.tensor(SPACINGS))
    assert measured["hd95"] == pytest.approx(np.mean(expected))
    assert measured["hd95_missing"] == 1 / 4
    assert {"loss", "accuracy", "dice"} < measured.keys()


def test_voxels_without_a_label_and_classes_that_are_nowhere_do_not_count():
    known = torch.zeros(2, 6, 8, 8, dtype=torch.int64)
    known[:, :3, 2:4, 2:4] = 1
    found = known.clone()
    found[:, 5] = 1
    known[:, 5] = -100
    measured = measure(found, known, spacing_mm=torch.tensor(SPACINGS))
    assert (measured["hd95"], measured["hd95_missing"]) == (0, 0)
    nothing = torch.zeros_like(known)
    assert math.isnan(measure(nothing, nothing, spacing_mm=torch.tensor(SPACINGS))["hd95"])


def test_what_has_no_millimetres_is_refused():
    with pytest.raises(ConfigError, match="the data have no spacing_mm"):
        measure(labels_of(0), labels_of(1))
    with pytest.raises(ConfigError, match="hd95 says nothing of ClassificationTask"):
        MeasuredTask(ClassificationTask(3), ["hd95"])
    with pytest.raises(ConfigError, match="unknown metric 'hd59'"):
        MeasuredTask(SegmentationTask(3), ["hd59"])
