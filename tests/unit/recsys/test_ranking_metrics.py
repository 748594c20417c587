"""Metrics of rankings against cases by hand and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics

from deepseek.errors import ConfigError, DataError
from deepseek.recsys.ranking_metrics import (
    Prequential,
    area_under_curve,
    grouped_area,
    list_ndcg,
    log_loss,
    top_metrics,
)


def test_areas_and_losses_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 20, 500) / 20, rng.integers(0, 2, 500)  # many are equal
    assert area_under_curve(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores))
    probs = rng.random(500)
    assert log_loss(probs, labels) == pytest.approx(metrics.log_loss(labels, probs))
    assert math.isnan(area_under_curve([0.1, 0.2], [1, 1]))
    users = rng.integers(0, 30, 500)
    areas = [metrics.roc_auc_score(labels[users == u], scores[users == u]) for u in range(30)]
    want = np.average(areas, weights=np.bincount(users))
    assert grouped_area(scores, labels, users) == pytest.approx(want)
    with pytest.raises(DataError, match=r"scores \(1,\) for labels \(2,\)"):
        area_under_curve([0.5], [0, 1])
    with pytest.raises(DataError, match="labels 0 or 1"):
        log_loss([0.5], [2])


def test_the_place_of_the_right_item_says_all():
    scores = np.array([[9.0, 8, 7, 6], [1, 2, 3, 4], [5, 5, 1, 0]])
    found = top_metrics(scores, [1, 3, 0], (1, 2))
    # places 1, 0, and 1/2: one of two with the same score
    assert found["hr@1.full"] == pytest.approx(2 / 3)
    assert found["hr@2.full"] == 1
    want = (1 / math.log2(3) + 1 + 1 / math.log2(2.5)) / 3
    assert found["ndcg@2.full"] == pytest.approx(want)
    without = top_metrics(scores, [1, 3, 0], (1,), seen=[[0], [], [1]])
    assert without["hr@1.full"] == 1
    drawn = top_metrics(np.tile(np.arange(101.0), (200, 1)), [60] * 200, (1,), num_sampled=2)
    # the better of 40 in 100 must not be among the two
    assert drawn["hr@1.sampled_2"] == pytest.approx(0.6 * 59 / 99, abs=0.1)
    with pytest.raises(DataError, match="3 other items, and 4"):
        top_metrics(scores, [1, 3, 0], num_sampled=4)


def test_the_ndcg_of_lists_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    scores, good = rng.random((20, 8)), rng.integers(0, 2, (20, 8))
    good[:, 0] = 1
    want = metrics.ndcg_score(good, scores, k=5)
    assert list_ndcg(scores, good, 5).mean() == pytest.approx(want)
    assert np.isnan(list_ndcg(scores[:1], np.zeros((1, 8)), 5)).all()


def test_a_stream_is_judged_in_windows_and_by_what_fades():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 250)
    probs = np.where(np.arange(250) < 100, 0.5, 0.1 + 0.8 * labels)  # it learns after 100 rows
    whole, parts = Prequential(100, 0.9), Prequential(100, 0.9)
    whole.add(probs, labels)
    for at in range(0, 250, 7):
        parts.add(probs[at : at + 7], labels[at : at + 7])
    assert whole.windows("auc") == [0.5, 1.0]
    assert whole.windows("log_loss") == pytest.approx([math.log(2), -math.log(0.9)])
    found, again = whole.values(), parts.values()
    assert found == pytest.approx(again)
    assert found["auc.window"] == 1
    assert found["log_loss.faded"] == pytest.approx(-math.log(0.9), abs=1e-5)
    assert 0.5 < found["auc"] < 1
    with pytest.raises(DataError, match="no rows"):
        Prequential().values()
    with pytest.raises(ConfigError, match="window=0"):
        Prequential(0)
    with pytest.raises(ConfigError, match="metric='x'"):
        whole.windows("x")


def test_scores_that_are_no_numbers_are_refused():
    scores = np.ones((3, 4))
    scores[1] = math.nan
    with pytest.raises(DataError, match="a score of user 1 is not a number"):
        top_metrics(scores, [0, 1, 2])
