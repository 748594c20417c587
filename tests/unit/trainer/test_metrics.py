import math

import pytest
import torch
from sklearn.metrics import f1_score

from deepseek.trainer.metrics import MacroF1, Mean, Perplexity, count_by_class
from deepseek.trainer.task import ClassificationTask, LanguageModellingTask
from deepseek.trainer.token_classification import TokenClassificationTask, find_entities

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def test_macro_f1_is_scikit_learn_s_whatever_the_batches():
    torch.manual_seed(0)
    labels, predicted = torch.randint(0, 4, (200,)), torch.randint(0, 5, (200,))
    metric = MacroF1(7)  # two classes never occur
    for part in range(0, 200, 33):
        cut = slice(part, part + 33)
        counts = count_by_class(predicted[cut], labels[cut], 7)
        metric.update(counts, len(labels[cut]))
    assert metric.compute() == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_sums_of_ranks_add_up_to_the_metric_of_all():
    for make, totals in (
        (Mean, [torch.tensor(3.0), torch.tensor(5.0)]),
        (Perplexity, [torch.tensor(3.0), torch.tensor(5.0)]),
        (lambda: MacroF1(2), [torch.tensor([[1, 2], [3, 2], [1, 4]])] * 2),
    ):
        ranks, whole = [make(), make()], make()
        for rank, total in zip(ranks, totals, strict=True):
            rank.update(total, 4)
            whole.update(total, 4)
        ranks[0].take_sums([a + b for a, b in zip(*(r.sums() for r in ranks), strict=True)])
        assert ranks[0].compute() == pytest.approx(whole.compute())


def test_perplexity_is_the_exponential_of_the_loss():
    task = LanguageModellingTask()
    metrics = task.new_metrics()
    logits, targets = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    targets[0, 3:] = -100
    task.update_metrics(metrics, logits, {"targets": targets})
    assert metrics["perplexity"].compute() == pytest.approx(math.exp(metrics["loss"].compute()))
    empty = Perplexity()
    assert math.isnan(empty.compute())
    empty.update(torch.tensor(1e6), 1)
    assert empty.compute() == math.inf


def test_classification_measures_macro_f1():
    task = ClassificationTask(3)
    metrics = task.new_metrics()
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    task.update_metrics(metrics, logits, {"targets": torch.tensor([0, 1, 1, 2])})
    assert metrics["macro_f1"].compute() == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_entities_are_whole_spans_of_one_kind_in_one_sequence():
    labels = [1, 2, 0, 4, 4, 3, 2, 1]
    sequences = [0, 0, 0, 0, 0, 0, 0, 1]
    assert find_entities(labels, sequences, NAMES) == {
        (0, 0, 2, "PER"), (0, 3, 5, "LOC"), (0, 5, 6, "LOC"), (0, 6, 7, "PER"), (1, 7, 8, "PER"),
    }  # fmt: skip
    assert find_entities([1, 2, 2], [0, 0, 1], NAMES) == {(0, 0, 2, "PER"), (1, 2, 3, "PER")}


def test_labels_of_minus_100_count_nowhere():
    task = TokenClassificationTask(NAMES)
    assert task.monitor == "val_entity_f1"
    targets = torch.tensor([[-100, 1, 2, -100], [-100, 0, 3, -100]])
    logits = torch.nn.functional.one_hot(targets.clamp(min=0), 5).float() * 9
    noise = torch.where(targets[..., None] == -100, torch.randn(2, 4, 5) * 50, 0.0)
    batch = {"targets": targets}
    metrics = task.new_metrics()
    task.update_metrics(metrics, logits + noise, batch)
    assert task.count_items(batch) == 4
    assert metrics["accuracy"].compute() == metrics["entity_f1"].compute() == 1.0
    assert torch.allclose(task.loss(logits + noise, batch), task.loss(logits, batch))
    assert task.predictions(logits, batch)["loss"].shape == (2,)
    logits[0, 2] = torch.eye(5)[0] * 9  # half of the entity is missed
    metrics = task.new_metrics()
    task.update_metrics(metrics, logits, batch)
    assert metrics["entity_f1"].compute() == pytest.approx(0.5)
    assert "entity_f1" not in TokenClassificationTask(("noun", "verb")).new_metrics()


def test_counts_of_all_ranks_are_whole_however_many_items_there_are():
    metric = MacroF1(1)
    many = 2.0**24 + 1  # no float32
    metric.take_sums([many, many, many])
    assert metric.sums() == [many, many, many]
