"""Each weighting on two quadratics, whose solution is written out beside it.

L_i = c_i / 2 |x - p_i|^2, so that the gradient is c_i (x - p_i).
"""

import math
from itertools import product

import numpy as np
import pytest

from deepseek.errors import ConfigError
from deepseek.trainer.gradient_weighting import CAGrad, PCGrad
from deepseek.trainer.weighting import WEIGHTINGS, Seen, make_weighting

BOTH = np.array([True, True])
POINTS = np.array([[0.0, 0.0], [2.0, 1.0]])
CURVATURES = np.array([1.0, 3.0])

# the two that need settings have tests of their own
NAMES = [name for name in WEIGHTINGS.names() if name not in ("fixed", "constraint")]


def begun(given, steps_per_epoch=1, names=("a", "b")):
    weighting = make_weighting(given)
    weighting.begin(names, steps_per_epoch, 0)
    return weighting


def quadratics(x, offsets=(0.0, 0.0), points=POINTS, curvatures=CURVATURES):
    """Losses and gradients at x, as a weighting sees them."""
    gradients = curvatures[:, None] * (x - points)
    losses = curvatures / 2 * ((x - points) ** 2).sum(1) + np.array(offsets)
    return Seen(losses, BOTH, gradients @ gradients.T), gradients


def descend(weighting, x, num_steps, rate, lr=0.01, **problem):
    for _ in range(num_steps):
        seen, gradients = quadratics(x, **problem)
        x = x - rate * weighting.weights(seen) @ gradients
        weighting.learn(seen, lr)
    return x


def test_equal_and_fixed_weights_end_at_the_weighted_mean_of_the_minima():
    x = descend(begun("equal"), np.array([5.0, -3.0]), 200, 0.2)
    np.testing.assert_allclose(x, CURVATURES @ POINTS / CURVATURES.sum(), atol=1e-6)
    fixed = begun({"name": "fixed", "weights": {"b": 0.25, "a": 0.75}})
    x = descend(fixed, np.array([5.0, -3.0]), 200, 0.2)
    pulls = np.array([0.75, 0.25]) * CURVATURES
    np.testing.assert_allclose(x, pulls @ POINTS / pulls.sum(), atol=1e-6)


def test_uncertainty_learns_the_logarithm_of_each_loss():
    # d/ds exp(-s) L + s = 0 at s = log L; then the gradient is that of the sum of log L
    weighting, offsets = begun("uncertainty"), (0.5, 2.0)
    x = descend(weighting, np.array([1.0, 0.0]), 8000, 0.05, lr=0.01, offsets=offsets)
    seen, gradients = quadratics(x, offsets)
    np.testing.assert_allclose(weighting.values, np.log(seen.losses), atol=0.01)
    np.testing.assert_allclose((gradients / seen.losses[:, None]).sum(0), 0, atol=0.02)
    expected = np.mean(np.exp(-weighting.values) * seen.losses + weighting.values)
    total = weighting.weights(None) @ seen.losses + weighting.penalty()
    assert total == pytest.approx(expected)


def test_dynamic_average_weighs_by_how_little_a_loss_has_fallen():
    # each task has an axis of its own: with weights of 1/2 a step multiplies its loss by
    # (1 - rate c / 2)^2
    rate, x = 0.2, np.array([1.0, 1.0])
    weighting = begun({"name": "dwa", "temperature": 2.0})
    for _ in range(2):
        losses = CURVATURES / 2 * x**2
        np.testing.assert_allclose(weighting.weights(None), 0.5)
        x = x - rate * weighting.weights(None) * CURVATURES * x
        weighting.learn(Seen(losses, BOTH), 0.1)
    ratios = (1 - rate * CURVATURES / 2) ** 2
    expected = np.exp(ratios / 2) / np.exp(ratios / 2).sum()
    np.testing.assert_allclose(weighting.weights(None), expected, rtol=1e-12)


def test_dynamic_average_takes_the_mean_of_an_epoch():
    weighting = begun("dwa", steps_per_epoch=2)
    for losses in ([4.0, 1.0], [2.0, 3.0], [1.0, 2.0], [2.0, 2.0]):
        weighting.learn(Seen(np.array(losses), BOTH), 0.1)
    ratios = np.array([1.5 / 3.0, 2.0 / 2.0])
    expected = np.exp(ratios / 2) / np.exp(ratios / 2).sum()
    np.testing.assert_allclose(weighting.weights(None), expected)


@pytest.mark.parametrize("alpha", [0.0, 1.0])  # where r adds up to N, all can be met
def test_gradnorm_makes_gradients_as_large_as_rates_of_learning_ask(alpha):
    # w_1 n_1 / (w_2 n_2) = (r_1 / r_2)^alpha, and w_1 + w_2 = 2
    weighting = begun({"name": "gradnorm", "alpha": alpha, "lr": 0.005})
    first, gradients = quadratics(np.array([1.0, -1.0]))
    weighting.learn(first, 0.1)
    later = Seen(first.losses * [0.5, 0.8], BOTH, first.gram)
    for _ in range(3000):
        weighting.learn(later, 0.1)
    norms = np.linalg.norm(gradients, axis=1)
    ratio = (0.5 / 0.8) ** alpha * norms[1] / norms[0]
    expected = 2 * ratio / (1 + ratio) / 2
    assert weighting.weights(None)[0] == pytest.approx(expected, abs=0.01)


def test_famo_lets_the_logarithms_of_both_losses_fall_alike():
    # axes of their own: d log L_i / dt is in the ratio z_i c_i / L_i; equal where z_i ~ L_i / c_i
    weighting = begun({"name": "famo", "lr": 0.01, "decay": 0.0, "smoothing": 0.0})
    x = np.array([2.0, 1.0])
    for _ in range(3000):
        seen = Seen(CURVATURES / 2 * x**2, BOTH)
        x = x - 1e-4 * weighting.weights(seen) * CURVATURES * x
        weighting.learn(seen, 0.1)
    last = CURVATURES / 2 * x**2
    shares = np.exp(weighting.values) / np.exp(weighting.values).sum()
    expected = last / CURVATURES / (last / CURVATURES).sum()
    np.testing.assert_allclose(shares, expected, atol=0.02)
    weights = shares / last / (shares / last).sum()
    np.testing.assert_allclose(weighting.weights(Seen(last, BOTH)), weights)


def test_famo_is_not_carried_away_by_one_batch_that_was_easy():
    weighting = begun("famo")
    for _ in range(20):
        weighting.learn(Seen(np.array([1.0, 1.0]), BOTH), 0.1)
    by_chance = Seen(np.array([1.0, 1e-4]), BOTH)
    assert weighting.weights(by_chance)[1] == pytest.approx(0.5, abs=0.05)


def test_pcgrad_takes_from_each_gradient_what_runs_against_the_other():
    seen, (one, two) = quadratics(np.array([1.0, 0.9]))
    assert one @ two < 0
    surgery = begun("pcgrad")
    projected = one - one @ two / (two @ two) * two, two - one @ two / (one @ one) * one
    np.testing.assert_allclose(
        surgery.weights(seen) @ np.stack([one, two]), sum(projected) / 2, atol=1e-12
    )
    agreeing, _ = quadratics(np.array([5.0, 5.0]))
    np.testing.assert_allclose(surgery.weights(agreeing), 0.5)


def test_pcgrad_ends_on_the_segment_between_the_minima():
    surgery, x = begun("pcgrad"), np.array([1.5, -1.0])
    x = descend(surgery, x, 2000, 0.1)
    along = POINTS[1] / np.linalg.norm(POINTS[1])
    assert np.linalg.norm(x - x @ along * along) < 1e-3
    assert 0 <= x @ along <= np.linalg.norm(POINTS[1])


@pytest.mark.parametrize("c", [0.0, 0.4, 0.8])
def test_cagrad_is_the_best_direction_near_the_mean_for_the_worst_task(c):
    # max over |d - g0| <= c |g0| of min_i g_i . d, here by walking round the circle
    seen, gradients = quadratics(np.array([1.0, 0.9]))
    mean = gradients.mean(0)
    found = begun({"name": "cagrad", "c": c}).weights(seen) @ gradients * (1 + c**2)
    assert np.linalg.norm(found - mean) <= c * np.linalg.norm(mean) * (1 + 1e-6) + 1e-12
    angles = np.linspace(0, 2 * math.pi, 20001)
    circle = mean + c * np.linalg.norm(mean) * np.stack([np.cos(angles), np.sin(angles)], 1)
    best = (circle @ gradients.T).min(1).max()
    assert (gradients @ found).min() == pytest.approx(best, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["mgda", "mgda_ub"])
@pytest.mark.parametrize("x", [[1.0, 0.9], [5.0, 5.0], [-1.0, 2.0], [0.1, -0.2]])
def test_mgda_is_the_shortest_weighted_mean(name, x):
    # of two: the share of the first is (g2 - g1) . g2 / |g1 - g2|^2, within 0..1
    seen, (one, two) = quadratics(np.array(x))
    share = np.clip((two - one) @ two / ((one - two) @ (one - two)), 0, 1)
    np.testing.assert_allclose(begun(name).weights(seen), [share, 1 - share], atol=1e-6)


def test_mgda_goes_downhill_for_both_to_the_pareto_set():
    mgda, x = begun("mgda"), np.array([1.5, -1.0])
    for _ in range(2000):
        seen, gradients = quadratics(x)
        direction = mgda.weights(seen) @ gradients
        assert (gradients @ direction > -1e-9).all()
        x = x - 0.1 * direction
    along = POINTS[1] / np.linalg.norm(POINTS[1])
    assert np.linalg.norm(x - x @ along * along) < 1e-3


def test_three_tasks_are_solved_as_well():
    gradients = np.random.default_rng(3).normal(size=(3, 5)) + 0.3
    seen = Seen(np.ones(3), np.ones(3, bool), gradients @ gradients.T)
    weights = begun("mgda", names=("a", "b", "c")).weights(seen)
    grid = np.array([(a, b, 200 - a - b) for a, b in product(range(201), repeat=2) if a + b <= 200])
    least = np.linalg.norm(grid / 200 @ gradients, axis=1).min()
    assert weights.sum() == pytest.approx(1)
    assert np.linalg.norm(weights @ gradients) <= least + 1e-9
    factors = begun("cagrad", names=("a", "b", "c")).weights(seen) * (1 + 0.4**2)
    mean = gradients.mean(0)
    apart = np.linalg.norm(factors @ gradients - mean)
    assert apart == pytest.approx(0.4 * np.linalg.norm(mean), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_without_labels_and_a_broken_gradient_are_borne(name):
    weighting = begun(name, names=("a", "b", "c"))
    gram = np.diag([1.0, 4.0, 0.0])
    seen = Seen(np.array([1.0, 2.0, 0.0]), np.array([True, True, False]), gram)
    for _ in range(3):
        assert np.isfinite(weighting.weights(seen)).all()
        weighting.learn(seen, 0.01)
    broken = Seen(np.array([np.nan, 1.0, 1.0]), np.ones(3, bool), gram * np.nan)
    weighting.weights(broken)
    weighting.learn(seen, 0.01)
    assert np.isfinite(weighting.weights(seen)).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_weighting_goes_on_from_its_state(name):
    generator = np.random.default_rng(0)
    steps = []
    for _ in range(9):
        gradients = generator.normal(size=(2, 3))
        steps.append(Seen(generator.uniform(0.5, 2, 2), BOTH, gradients @ gradients.T))
    whole, half = begun(name, 2), begun(name, 2)
    for seen in steps[:5]:
        whole.learn(seen, 0.01)
        half.learn(seen, 0.01)
    resumed = begun(name, 2)
    resumed.load_state_dict(half.state_dict())
    for seen in steps[5:]:
        np.testing.assert_array_equal(whole.weights(seen), resumed.weights(seen))
        whole.learn(seen, 0.01)
        resumed.learn(seen, 0.01)
    assert whole.state_dict() == resumed.state_dict()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("pgrad", "unknown weighting 'pgrad'"),
        ({"c": 1}, "has no name"),
        ({"name": "cagrad", "d": 1}, "does not take {'d': 1}"),
        ({"name": "cagrad", "c": -1}, "c=-1 is below 0"),
        ({"name": "dwa", "temperature": 0}, "temperature=0 is not above 0"),
        ({"name": "dwa", "window": 0}, "window=0 is below 1"),
        ({"name": "famo", "lr": 0}, "lr=0 of a weighting"),
        ({"name": "famo", "decay": -1}, "decay=-1 is below 0"),
        ({"name": "famo", "smoothing": 1}, "smoothing=1 is not in 0..1"),
        ({"name": "gradnorm", "alpha": -1}, "alpha=-1 is below 0"),
    ],
)
def test_wrong_settings_are_named(given, words):
    with pytest.raises(ConfigError, match=words.replace("{", "\\{").replace("}", "\\}")):
        make_weighting(given)


def test_fixed_weights_are_of_the_tasks():
    with pytest.raises(ConfigError, match=r"weights of \['a', 'c'\] for the tasks \['a', 'b'\]"):
        begun({"name": "fixed", "weights": {"a": 1, "c": 1}})
    with pytest.raises(ConfigError, match="not all numbers >= 0"):
        begun({"name": "fixed", "weights": {"a": 1, "b": -1}})


def test_surgery_leaves_heads_their_own_loss():
    assert not PCGrad.weighs_heads
    assert not CAGrad.weighs_heads
