import math

import pytest
import torch

from deepseek.datasets import DataSpec
from deepseek.deploy.optimization.quality import (
    AgreementTask,
    compare,
    is_share,
    metric_of,
    sum_by_group,
    task_of,
)
from deepseek.errors import CheckpointError, ConfigError
from deepseek.medical.detection import DetectionTask
from deepseek.trainer.binary import BinaryTask
from deepseek.trainer.multi_task import MultiTask
from deepseek.trainer.regression import RegressionTask
from deepseek.trainer.segmentation import SegmentationTask
from deepseek.trainer.task import ClassificationTask, LanguageModellingTask
from deepseek.trainer.token_classification import TokenClassificationTask

TARGETS = torch.arange(400) % 3


def logits(num_wrong):
    """Return logits (400, 3) of which so many are of the next class."""
    shown = torch.where(torch.arange(400) < num_wrong, (TARGETS + 1) % 3, TARGETS)
    return torch.nn.functional.one_hot(shown, 3).float() * 4


def sums(task, metric, outputs, targets=TARGETS, batch_size=32):
    def read(start, stop):
        return {"inputs": torch.arange(start, stop), "targets": targets[start:stop]}

    return sum_by_group(lambda at: outputs[at], read, task, metric, len(targets), batch_size)


def test_a_drop_of_accuracy_is_in_points_and_inside_its_interval():
    task = ClassificationTask(3)
    base, own = (sums(task, "accuracy", logits(count)) for count in (20, 32))
    found = compare(task, "accuracy", base, own)
    assert found.value == pytest.approx(368 / 400)
    assert found.drop == pytest.approx(12 / 400)
    low, high = found.interval
    assert low < found.drop < high
    # of a share p of samples that changed, the standard error is sqrt(p (1 - p) / n)
    error = math.sqrt(0.03 * 0.97 / 400)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_the_same_answers_have_no_drop_and_no_interval():
    task = ClassificationTask(3)
    base = sums(task, "accuracy", logits(20))
    found = compare(task, "accuracy", base, base)
    assert (found.drop, found.interval) == (0.0, (0.0, 0.0))


def test_macro_f1_is_that_of_all_samples_however_they_are_grouped():
    task = ClassificationTask(3)
    metric = task.new_metrics()
    task.update_metrics(metric, logits(90), {"targets": TARGETS})
    for batch_size in (7, 32, 400):
        own = sums(task, "macro_f1", logits(90), batch_size=batch_size)
        found = compare(task, "macro_f1", own, own)
        assert found.value == pytest.approx(metric["macro_f1"].compute())


def test_a_loss_drops_relative_to_the_original():
    task = LanguageModellingTask()
    outputs = torch.randn(400, 5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(7, (400, 5), generator=torch.Generator().manual_seed(1))
    base, own = (sums(task, "loss", outputs * scale, targets) for scale in (1.0, 1.5))
    before, after = (float(each[:, 0].sum() / each[:, 1].sum()) for each in (base, own))
    assert compare(task, "loss", base, own).drop == pytest.approx((after - before) / before)


def test_a_detector_that_finds_less_has_a_drop():
    task = DetectionTask()
    # hits of four crops, each at the highest score; those that are missed stand behind the bins
    base, own = torch.zeros(2, 4, len(task.new_metrics()["cpm"].sums()), dtype=torch.float64)
    base[:, -1] = own[:, -1] = 1
    base[:, 0], own[:2, 0], own[2:, -2] = 1, 1, 1
    for name in ("cpm", "sensitivity_at_1", "average_precision"):
        found = compare(task, name, base, own)
        assert (found.value, found.drop) == pytest.approx((0.5, 0.5)), name


@pytest.mark.parametrize(
    "task",
    [
        ClassificationTask(3), LanguageModellingTask(), DetectionTask(), SegmentationTask(2),
        BinaryTask(), RegressionTask(), TokenClassificationTask(("O", "B-A", "I-A")),
        TokenClassificationTask(("noun", "verb")), AgreementTask(3), AgreementTask(None),
        MultiTask({"a": DetectionTask(), "b": ClassificationTask(3)}),
        MultiTask({"a": LanguageModellingTask(), "b": ClassificationTask(3)}),
    ],
    ids=lambda task: f"{type(task).__name__}-{task.monitor}",
)  # fmt: skip
def test_what_a_task_watches_is_better_in_the_direction_that_it_says(task):
    assert is_share(metric_of(task, "auto")) == task.higher_is_better


def test_without_labels_agreement_with_the_original_counts():
    outputs = logits(0)
    task = AgreementTask(3)
    base = sums(task, "agreement", outputs, outputs)
    own = sums(task, "agreement", logits(8), outputs)
    assert metric_of(task, "auto") == "agreement"
    assert compare(task, "agreement", base, own).drop == pytest.approx(8 / 400)
    assert metric_of(AgreementTask(None), "auto") == "cosine"


@pytest.mark.parametrize(("kind", "width"), [("sequence_regression", 1), ("regression", 2)])
def test_a_number_that_is_off_is_no_agreement(kind, width):
    outputs = torch.randn(400, width, generator=torch.Generator().manual_seed(0)) + 5
    task = task_of(DataSpec(kind, {}), width, has_labels=False)
    metric = metric_of(task, "auto")
    base, own = (sums(task, metric, each, outputs) for each in (outputs, outputs + 0.5))
    found = compare(task, metric, base, own)
    assert compare(task, metric, base, base).drop == 0
    # the share of the variance of the numbers that is lost
    assert found.drop == pytest.approx(0.25 / float(outputs.var(correction=0)), rel=1e-3)
    assert found.interval[0] > 0.1


@pytest.mark.parametrize(("shape", "classes"), [((50, 8, 3), 2), ((50, 3, 2, 2, 2), 1)])
def test_the_class_of_each_token_and_voxel_counts(shape, classes):
    outputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    other = outputs.movedim(classes, -1).flatten(1, -2).clone()
    other[:, 0] = other[:, 0].roll(1, -1)  # another class at one of eight places
    other = other.reshape(outputs.movedim(classes, -1).shape).movedim(-1, classes)
    task = task_of(DataSpec("unknown", {}), 3, has_labels=False)
    base, own = (sums(task, "agreement", each, outputs) for each in (outputs, other))
    found = compare(task, "agreement", base, own)
    assert (found.value, found.drop) == pytest.approx((7 / 8, 1 / 8))


def test_outputs_that_are_not_finite_are_refused():
    outputs = logits(0)
    outputs[77, 1] = math.nan
    with pytest.raises(CheckpointError, match="not a finite number"):
        sums(ClassificationTask(3), "accuracy", outputs)


def test_an_unknown_metric_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"metric='bleu'") as caught:
        metric_of(ClassificationTask(3), "bleu")
    assert "macro_f1" in str(caught.value)
