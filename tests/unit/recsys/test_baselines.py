"""Popularity and EASE against their definitions."""

import numpy as np
import pytest

from deepseek.errors import ConfigError, DataError
from deepseek.recsys.baselines import EASE, Popularity


def test_popularity_moves_with_every_event_and_fades():
    rate = Popularity(prior=0.5, smoothing=2)
    rate.update("a", 1)
    rate.update("a", 0)
    rate.update("b", 1)
    assert rate.scores(["a", "b", "c"]).tolist() == pytest.approx([2 / 4, 2 / 3, 0.5])
    fading = Popularity("clicks", half_life_s=10)
    fading.update("a", 1, time=0)
    fading.update("a", 1, time=10)
    assert fading.scores(["a", "b"], time=20).tolist() == pytest.approx([0.75, 0])
    for wrong, message in (({"by": "x"}, "by='x'"), ({"half_life_s": 0}, "half_life_s=0")):
        with pytest.raises(ConfigError, match=message):
            Popularity(**wrong)


def test_ease_is_ridge_regression_of_each_item_on_the_others():
    rng = np.random.default_rng(0)
    met = (rng.random((40, 6)) < 0.4).astype(float)
    users, items = met.nonzero()
    model = EASE(strength=3.0).fit(users, items, 6)
    for item in range(6):
        others = [other for other in range(6) if other != item]
        x = met[:, others]
        weights = np.linalg.solve(x.T @ x + 3 * np.eye(5), x.T @ met[:, item])
        assert model.weights[others, item] == pytest.approx(weights)
        assert model.weights[item, item] == 0
    assert model.scores(users, items) == pytest.approx(met @ model.weights)
    doubled = EASE(strength=12.0).fit(users, items, 6, values=np.full(len(users), 2.0))
    assert doubled.weights == pytest.approx(model.weights)
    with pytest.raises(DataError, match="of 6"):
        model.scores([0], [6])
    with pytest.raises(ConfigError, match="strength=0"):
        EASE(0)


def test_an_event_that_comes_late_does_not_age_what_is_newer():
    events = [(1, 0.0), (0, 10.0), (1, 15.0), (1, 40.0)]
    found = []
    for order in ([0, 1, 2, 3], [3, 1, 2, 0], [2, 3, 0, 1]):
        fading = Popularity(half_life_s=10)
        for clicked, time in (events[each] for each in order):
            fading.update("a", clicked, time)
        found.append(fading.scores(["a"], time=50)[0])
    assert found == pytest.approx([found[0]] * 3)
