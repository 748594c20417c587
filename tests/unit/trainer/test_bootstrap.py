import numpy as np
import pytest

from deepseek.errors import ConfigError, DataError
from deepseek.trainer.bootstrap import bootstrap_interval


def test_the_interval_of_a_mean_is_the_one_of_its_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap_interval(values)
    assert found.value == pytest.approx(values.mean())
    error = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx(
        (found.value - error, found.value + error), abs=error / 5
    )
    assert str(found).startswith(f"{found.value:.3f} ({found.low:.3f} to ")


def test_cases_of_one_group_are_drawn_together():
    values = np.repeat(np.random.default_rng(1).normal(size=20), 10)
    alone = bootstrap_interval(values)
    grouped = bootstrap_interval(values, groups=[f"patient {i // 10}" for i in range(200)])
    ratio = (grouped.high - grouped.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(10**0.5, rel=0.15)


def test_the_seed_decides_and_nan_is_left_out():
    values = np.append(np.random.default_rng(2).normal(size=30), np.nan)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval(values).value == pytest.approx(values[:-1].mean())


def test_no_cases_and_groups_of_another_length_are_refused():
    with pytest.raises(DataError, match="no cases to draw from"):
        bootstrap_interval(np.empty(0))
    with pytest.raises(ConfigError, match="2 groups for 3 cases"):
        bootstrap_interval(np.ones(3), groups=["a", "b"])
