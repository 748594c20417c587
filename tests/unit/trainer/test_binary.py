"""Yes or no: loss, area under the curve, calibration."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from deepseek.errors import ConfigError
from deepseek.trainer.binary import AreaUnderCurve, BinaryTask, count_by_score


def area(logits, labels):
    metric = AreaUnderCurve()
    metric.update(count_by_score(logits, labels), len(labels))
    return metric.compute()


def test_the_area_is_that_of_scikit_learn():
    torch.manual_seed(0)
    labels = (torch.rand(4000) < 0.3).float()
    logits = torch.randn(4000) + labels
    assert area(logits, labels) == pytest.approx(roc_auc_score(labels, logits), abs=2e-4)


def test_equal_scores_count_half():
    # pairs: (2 > 1), (2 = 2), (-1 < 1), (-1 < 2)
    logits, labels = torch.tensor([2.0, -1.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert area(logits, labels) == 1.5 / 4
    assert math.isnan(area(logits, torch.ones(4)))


def test_areas_of_parts_add_up():
    torch.manual_seed(0)
    labels, logits = torch.randint(0, 2, (100,)).float(), torch.randn(100)
    metric = AreaUnderCurve()
    for part in (slice(0, 30), slice(30, 100)):
        metric.update(count_by_score(logits[part], labels[part]), 1)
    other = AreaUnderCurve()
    other.take_sums(metric.sums())
    assert metric.compute() == other.compute() == area(logits, labels)


def test_a_missing_label_counts_nowhere():
    task = BinaryTask()
    batch = {"targets": torch.tensor([1.0, math.nan, 0.0])}
    logits = torch.tensor([0.5, 9.0, -1.0], requires_grad=True)
    loss = task.loss(logits, batch)
    wanted = F.binary_cross_entropy_with_logits(
        logits[[0, 2]], torch.tensor([1.0, 0.0]), reduction="sum"
    )
    assert torch.equal(loss, wanted)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[1] == 0
    assert task.count_items(batch) == 2
    metrics = task.new_metrics()
    task.update_metrics(metrics, logits.detach()[:, None], batch)
    assert metrics["accuracy"].compute() == 1
    calibration = torch.tensor([0.5, -1.0]).sigmoid().sum().item()
    assert metrics["calibration"].compute() == pytest.approx(calibration)


def test_outputs_of_another_shape_are_refused():
    with pytest.raises(ConfigError, match="one logit for each sample"):
        BinaryTask().loss(torch.zeros(3, 2), {"targets": torch.zeros(3)})
