import numpy as np
import pytest

from deepseek.deploy.report.confusion import class_scores, confusion_matrix, most_confused

TARGETS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 0])


def test_rows_are_targets_and_columns_predictions():
    matrix = confusion_matrix(TARGETS, PREDICTED, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_scores_of_a_case_computed_by_hand():
    scores = class_scores(TARGETS, PREDICTED, 4)
    assert scores.precision == pytest.approx([2 / 4, 1 / 2, 0, 0])
    assert scores.recall == pytest.approx([2 / 3, 1 / 2, 0, 0])
    assert scores.f1 == pytest.approx([4 / 7, 1 / 2, 0, 0])
    assert scores.support.tolist() == [3, 2, 1, 0]
    assert scores.macro()[1] == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert scores.weighted()[1] == pytest.approx(3 / 6)


def test_pairs_come_most_frequent_first_with_their_share_of_the_target():
    targets, predicted = np.array([0, 0, 1, 1, 1]), np.array([1, 0, 0, 0, 1])
    pairs = most_confused(targets, predicted, 2, limit=5)
    assert [(p.target, p.predicted, p.count) for p in pairs] == [(1, 0, 2), (0, 1, 1)]
    assert [p.share for p in pairs] == pytest.approx([2 / 3, 1 / 2])


def test_scores_equal_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    targets, predicted = rng.integers(0, 7, 500), rng.integers(0, 7, 500)
    scores = class_scores(targets, predicted, 7)
    expected = metrics.precision_recall_fscore_support(targets, predicted, zero_division=0)
    for ours, theirs in zip((scores.precision, scores.recall, scores.f1), expected, strict=False):
        assert ours == pytest.approx(theirs)
    for average, ours in (("macro", scores.macro()), ("weighted", scores.weighted())):
        theirs = metrics.precision_recall_fscore_support(targets, predicted, average=average)
        assert ours == pytest.approx(theirs[:3])
    matrix = confusion_matrix(targets, predicted, 7)
    assert (matrix == metrics.confusion_matrix(targets, predicted)).all()
