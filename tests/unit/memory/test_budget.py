"""What is given up for a budget."""

from itertools import chain, combinations

import pytest
import torch

from deepseek.memory.budget import Census, Group, cheapest
from deepseek.memory.epsilons import Epsilons
from deepseek.memory.policy import MemoryPolicy
from deepseek.models import GPT

SIZES = [Group(40, [0], 3.0), Group(30, [1], 1.0), Group(50, [2, 3], 4.0), Group(20, [4], None)]
SIZES += [Group(25, [5], 0.5), Group(60, [6], 4.5)]


def brute_force(groups, to_free):
    able = [group for group in groups if group.cost_s is not None]
    subsets = chain.from_iterable(combinations(able, n) for n in range(len(able) + 1))
    costs = [
        sum(g.cost_s for g in subset)
        for subset in subsets
        if sum(g.nbytes for g in subset) >= to_free
    ]
    return min(costs, default=None)


@pytest.mark.parametrize("to_free", [0, 1, 24, 25, 55, 90, 100, 150, 204, 205, 206, 500])
def test_the_cheapest_groups_are_found(to_free):
    chosen = cheapest(SIZES, to_free)
    best = brute_force(SIZES, to_free)
    if best is None:
        assert chosen is None
        return
    assert sum(group.nbytes for group in chosen) >= to_free
    # bytes are counted in thousandths, rounded down
    nearly = brute_force(SIZES, 1.005 * to_free)
    assert best <= sum(group.cost_s for group in chosen) <= (nearly or 13.0)


def test_a_census_adds_up_what_is_kept_and_what_is_not():
    model = GPT(context_length=64, num_classes=50, num_layers=2, dim=64, heads=4)
    policy = MemoryPolicy("pointwise", [model])
    policy.observer = census = Census(Epsilons(model), torch.device("cpu"))
    with policy.saving():
        model(torch.zeros(2, 64, dtype=torch.int64)).sum().backward()
    unit = 4 * 2 * 64 * 64
    # of each block the outputs of two norms, four times as much of the activation; the last norm
    assert census.remade_bytes == (2 * 6 + 1) * unit
    assert census.all_bytes == census.kept_bytes + census.remade_bytes
    products = [group for group in census.groups if group.cost_s is not None]
    # the activation's input; attention scales and copies queries and keys
    assert [group.nbytes for group in products] == [4 * unit, 4 * unit]
    assert all(group.cost_s > 0 for group in products)
