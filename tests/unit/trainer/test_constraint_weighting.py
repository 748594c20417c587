"""A Lagrangian finds the best of one task below the limit of another."""

import numpy as np
import pytest

from deepseek.errors import ConfigError
from deepseek.trainer.weighting import Seen, make_weighting

BOTH = np.array([True, True])


def descend(limit, steps=4000):
    """Minimise (x - 1)^2 where (x + 1)^2 <= limit."""
    weighting = make_weighting({"name": "constraint", "limits": {"far": limit}, "lr": 0.02})
    weighting.begin(("near", "far"), 10, 0)
    x = 1.0
    for _ in range(steps):
        losses = np.array([(x - 1) ** 2, (x + 1) ** 2])
        seen = Seen(losses, BOTH)
        x -= 0.05 * weighting.weights(None) @ np.array([2 * (x - 1), 2 * (x + 1)])
        weighting.learn(seen, 0.05)
    return x, weighting


def test_the_best_below_a_limit_and_its_multiplier():
    x, weighting = descend(1.0)  # at x = 0: 2 (0 - 1) + m 2 (0 + 1) = 0
    assert x == pytest.approx(0, abs=1e-3)
    assert weighting.multipliers == pytest.approx([0, 1], abs=1e-2)
    x, weighting = descend(9.0)  # it is never broken
    assert x == pytest.approx(1)
    assert weighting.multipliers.tolist() == [0, 0]


def test_multipliers_are_kept_and_a_task_without_labels_has_no_say():
    _, weighting = descend(1.0, steps=50)
    again = make_weighting({"name": "constraint", "limits": {"far": 1.0}})
    again.begin(("near", "far"), 10, 0)
    again.load_state_dict(weighting.state_dict())
    assert again.weights(None).tolist() == weighting.weights(None).tolist()
    again.learn(Seen(np.array([5.0, 0.0]), np.array([True, False])), 0.1)
    assert again.weights(None).tolist() == weighting.weights(None).tolist()


def test_limits_leave_one_task_without():
    for limits in ({}, {"near": 1.0, "far": 1.0}, {"other": 1.0}):
        weighting = make_weighting({"name": "constraint", "limits": limits})
        with pytest.raises(ConfigError, match="each task but one"):
            weighting.begin(("near", "far"), 10, 0)
    with pytest.raises(ConfigError, match="far=-1"):
        make_weighting({"name": "constraint", "limits": {"far": -1}})
