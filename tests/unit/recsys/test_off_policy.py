"""Estimators on a bandit whose value is known."""

import numpy as np
import pytest

from deepseek.errors import DataError
from deepseek.recsys.off_policy import off_policy_values

RATES = np.array([[0.1, 0.5, 0.3], [0.6, 0.2, 0.4]])  # reward of each action in each context
OLD = np.array([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2]])
NEW = np.array([[0.1, 0.8, 0.1], [0.9, 0.05, 0.05]])
VALUE = (NEW * RATES).sum(1).mean()


def events(num, seed):
    rng = np.random.default_rng(seed)
    context = rng.integers(0, 2, num)
    action = (rng.random(num)[:, None] > OLD[context].cumsum(1)).sum(1)
    reward = (rng.random(num) < RATES[context, action]).astype(float)
    return context, action, reward


def estimates(num, seed, model, num_rounds=1):
    context, action, reward = events(num, seed)
    return off_policy_values(
        reward, OLD[context, action], NEW[context, action],
        expected_logged=model[context, action],
        expected_target=(NEW[context] * model[context]).sum(1), num_rounds=num_rounds,
    )  # fmt: skip


def test_the_value_of_a_policy_that_was_not_played():
    found = {name: [] for name in ("ips", "snips", "dr")}
    for seed in range(60):
        for name, interval in estimates(400, seed, RATES).items():
            found[name].append(interval.value)
    for name, values in found.items():
        error = np.std(values) / 60**0.5
        assert abs(np.mean(values) - VALUE) < 3 * error + 1e-3, name
    assert np.std(found["dr"]) < np.std(found["snips"]) < np.std(found["ips"])
    wrong = [estimates(400, seed, 1 - RATES)["dr"].value for seed in range(60)]
    assert np.mean(wrong) == pytest.approx(VALUE, abs=0.02)  # a wrong model costs variance alone
    played = np.mean([events(400, seed)[2].mean() for seed in range(60)])
    assert abs(played - VALUE) > 0.15


def test_intervals_hold_the_value_and_weights_are_cut():
    held = [estimates(400, seed, RATES, 100)["snips"] for seed in range(20)]
    assert sum(each.low <= VALUE <= each.high for each in held) >= 16
    context, action, reward = events(2000, 0)
    old, new = OLD[context, action], NEW[context, action]
    free = off_policy_values(reward, old, new, num_rounds=1)["ips"].value
    assert off_policy_values(reward, old, new, max_weight=1, num_rounds=1)["ips"].value < free
    same = off_policy_values(reward, old, old, num_rounds=1)
    assert same["ips"].value == pytest.approx(reward.mean())
    assert list(same) == ["ips", "snips"]


def test_events_that_say_too_little_are_refused():
    with pytest.raises(DataError, match="old policy's is 0"):
        off_policy_values([1.0], [0.0], [0.5])
    with pytest.raises(DataError, match="shapes"):
        off_policy_values([1.0, 0.0], [0.5], [0.5])
    with pytest.raises(DataError, match="one of the two"):
        off_policy_values([1.0], [0.5], [0.5], expected_logged=np.array([0.5]))
