import random

import numpy as np
import torch

from deepseek.datasets.randomness import (
    Draws,
    derive_key,
    mix,
    permutation,
    preserved_global_generators,
    seed_global_generators,
)


def test_first_values_are_splitmix64s():
    # First outputs of the reference implementation for state 0 (Vigna, splitmix64.c).
    gamma = 0x9E3779B97F4A7C15
    assert mix(gamma) == 0xE220A8397B1DCDAF
    assert mix(2 * gamma & (2**64 - 1)) == 0x6E789E6AA1B965F4


def test_same_parts_same_draws_and_other_parts_other_draws():
    assert Draws(1, 2, 3).bits() == Draws(1, 2, 3).bits()
    keys = {derive_key(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(keys) == 1000


def test_draws_are_uniform():
    draws = Draws(7)
    values = np.array([draws.uniform(2, 4) for _ in range(20_000)])
    assert 2 <= values.min() < values.max() < 4
    assert abs(values.mean() - 3) < 0.02  # standard error 0.004
    integers = np.bincount([draws.integer(0, 4) for _ in range(20_000)], minlength=5)
    assert len(integers) == 5
    assert abs(integers - 4000).max() < 300  # standard deviation 57


def test_permutation_is_one_and_depends_on_its_parts():
    order = permutation(1000, 3, 4)
    assert sorted(order.tolist()) == list(range(1000))
    assert np.array_equal(order, permutation(1000, 3, 4))
    assert not np.array_equal(order, permutation(1000, 3, 5))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


def test_global_generators_are_put_back():
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    expected = draw()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    with preserved_global_generators():
        seed_global_generators(5)
        first = draw()
        seed_global_generators(5)
        assert draw() == first
    assert draw() == expected
