"""Slates, and which models no other one beats."""

import numpy as np
import pytest

from deepseek.errors import ConfigError, DataError
from deepseek.recsys.pareto import pareto_chart, pareto_front
from deepseek.recsys.slate_replay import cut_slates, replay_slates


def test_slates_are_events_of_one_user_in_their_order():
    users = np.array([1, 2, 1, 1, 2, 1, 1, 3])
    assert cut_slates(users, 2).tolist() == [[0, 2], [1, 4], [3, 5]]
    with pytest.raises(ConfigError, match="size=1"):
        cut_slates(users, 1)


def test_an_order_is_judged_by_what_it_puts_first():
    clicked = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1]])
    scores = {
        "best": clicked + 0.0,
        "alike": np.zeros((3, 3)),
        "given": np.array([[3.0, 2, 1]] * 3),
    }
    replay = replay_slates(scores, clicked, ["a", "a", "b"])
    assert replay.click_rate("best").value == 1
    assert replay.click_rate("alike").value == pytest.approx(4 / 9)
    assert replay.click_rate("random").value == pytest.approx(4 / 9)
    assert replay.click_rate("given").value == pytest.approx(1 / 3)
    assert replay.lift("best", "random").value == pytest.approx(9 / 4 - 1)
    assert replay.mean_ndcg("best") == 1
    two = replay_slates(scores, clicked, ["a", "a", "b"], k=2)
    assert two.click_rate("given").value == pytest.approx((1 + 1 + 0) / 2 / 3)
    with pytest.raises(DataError, match="scores"):
        replay_slates({"x": np.zeros((2, 3))}, clicked, ["a", "a", "b"])
    with pytest.raises(ConfigError, match="k=4"):
        replay_slates(scores, clicked, ["a", "a", "b"], k=4)


def test_an_interval_is_drawn_by_user():
    rng = np.random.default_rng(0)
    rate = np.repeat(rng.random(30), 20)  # users differ: 20 slates of one say little more than one
    clicked = (rng.random((600, 5)) < rate[:, None]).astype(int)
    users = np.repeat(np.arange(30), 20)
    scores = {"first": np.tile(np.arange(5, 0, -1.0), (600, 1))}
    by_user = replay_slates(scores, clicked, users).click_rate("first")
    by_slate = replay_slates(scores, clicked, np.arange(600)).click_rate("first")
    assert by_user.high - by_user.low > 2 * (by_slate.high - by_slate.low)


def test_the_front_is_what_no_other_beats():
    values = {"a": (0.7, 0.2), "b": (0.6, 0.6), "c": (0.5, 0.5), "d": (0.1, 0.9)}
    assert pareto_front(list(values.values())).tolist() == [True, True, False, True]
    assert pareto_front([[1, 1], [1, 1]]).tolist() == [True, True]
    figure = pareto_chart(values, ("click", "buy"), "AUC of two tasks")
    assert figure.count("<circle") == 4
    assert figure.count('class="ring') == 1
    assert "not beaten in both: a, b, d" in figure
    with pytest.raises(ConfigError, match="two objectives"):
        pareto_chart({"a": (1,)}, ("x", "y"), "t")
