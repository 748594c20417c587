"""What is given up for a budget."""

from itertools import chain, combinations

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from deepseek.memory.budget import Block, Census, Group, Host, cheapest, choose
from deepseek.memory.epsilons import Epsilons
from deepseek.memory.host_link import HostLink
from deepseek.memory.policy import MemoryPolicy
from deepseek.memory.saved import Kept
from deepseek.models import GPT
from deepseek.parallel.paper import paper_ranks

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


PARTS = [
    Group(40, [0], 3.0, block=0), Group(30, [1], None, block=0), Group(20, [2], 0.5, block=0),
    Group(40, [3], 3.0, block=1), Group(35, [4], None, block=1), Group(60, [5], 2.0),
]  # fmt: skip
BLOCKS = [Block(0, 3.2), Block(1, 2.5)]


def cheapest_mixture(to_free):
    """Return what the cheapest of all mixtures costs, tried one by one; `None`: there is none."""
    costs = []
    for whole in chain.from_iterable(combinations(BLOCKS, n) for n in range(3)):
        numbers = {block.number for block in whole}
        freed = sum(group.nbytes for group in PARTS if group.block in numbers)
        rest = brute_force([g for g in PARTS if g.block not in numbers], to_free - freed)
        costs += [] if rest is None else [rest + sum(block.cost_s for block in whole)]
    return min(costs, default=None)


@pytest.mark.parametrize("to_free", [10, 20, 60, 80, 90, 130, 150, 165, 185, 224, 225, 226])
def test_a_block_is_recomputed_where_that_is_cheaper(to_free):
    chosen, best = cheapest(PARTS, to_free, BLOCKS), cheapest_mixture(to_free)
    if best is None:
        assert chosen is None
        return
    whole = {each.number for each in chosen if isinstance(each, Block)}
    groups = [each for each in chosen if isinstance(each, Group)]
    assert not any(group.block in whole for group in groups)
    freed = sum(g.nbytes for g in groups) + sum(g.nbytes for g in PARTS if g.block in whole)
    assert freed >= to_free
    nearly = cheapest_mixture(1.005 * to_free)
    assert best <= sum(each.cost_s for each in chosen) <= (nearly or 7.7)


def places(groups):
    return [group.places[0] for group in groups]


def test_without_a_host_products_alone_are_given_up():
    choice = choose(SIZES, 55)
    assert choice.copied == ()
    assert choice.remade_bytes == sum(group.nbytes for group in cheapest(SIZES, 55))
    assert choice.cost_s == sum(group.cost_s for group in choice.remade)


@pytest.mark.parametrize(
    ("to_free", "hidden", "copied"),
    [(40, 1000, [0]), (41, 1000, [0, 1]), (130, 1000, [0, 1, 2, 4]), (100, 75, [0, 1])],
)
def test_the_earliest_go_to_the_host_as_far_as_that_is_hidden(to_free, hidden, copied):
    choice = choose(SIZES, to_free, Host(hidden))
    assert places(choice.copied) == copied
    assert choice.copied_bytes + choice.remade_bytes >= to_free
    if hidden == 1000:
        assert (choice.remade, choice.cost_s) == ((), 0.0)


def test_what_is_not_hidden_goes_where_it_costs_less():
    fast, slow = HostLink(100.0, 100.0), HostLink(20.0, 20.0)
    everything = sum(group.nbytes for group in SIZES)
    # going and coming back: 1.2, 0.9, 1.5, 0.6, 0.75 and 1.8 s for products of 3, 1, 4, -, 0.5, 4.5
    nearly = choose(SIZES, everything - 1, Host(0.0, fast))
    assert places(nearly.remade) == [5]
    # 4, 3, 5, 2, 2.5 and 6 s
    dear = choose(SIZES, everything - 1, Host(0.0, slow))
    assert places(dear.copied) == [4]
    assert dear.cost_s == pytest.approx(3.0 + 1.0 + 4.0 + 2.0 + 0.5 + 4.5)
    assert choose(SIZES, everything - 1) is None
    assert choose(SIZES, everything - 1, Host(50.0)) is None


def test_what_cannot_be_copied_is_not():
    groups = [Group(40, [0], None, can_be_copied=False), Group(40, [1], 1.0)]
    assert places(choose(groups, 40, Host(1000)).copied) == [1]
    assert choose(groups, 60, Host(1000, HostLink(1.0, 1.0))) is None


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


def test_a_census_knows_what_recomputing_a_block_would_free():
    model = GPT(context_length=64, num_classes=50, num_layers=2, dim=64, heads=4)
    policy = MemoryPolicy("pointwise", [model])

    def look():
        policy.observer = census = Census(Epsilons(model), torch.device("cpu"))
        with census.watching(dict(enumerate(policy.blocks))), policy.saving():
            model(torch.zeros(2, 64, dtype=torch.int64)).sum().backward()
        census.forget()
        return census

    before = look()
    inside = [sum(g.nbytes for g in before.groups if g.block == number) for number in (0, 1)]
    assert inside[0] == inside[1] > 0
    assert all(block.cost_s > 0 for block in before.blocks)
    policy.recomputed = frozenset({1})
    after = look()
    assert after.kept_bytes == before.kept_bytes - inside[1]
    assert {group.block for group in after.groups} == {None, 0}


def test_a_census_counts_of_a_divided_tensor_what_this_rank_has():
    census = Census(Epsilons(), torch.device("cpu"))
    with paper_ranks(2, 0):
        mesh = init_device_mesh("cpu", (2,))
        whole = distribute_tensor(torch.ones(64, 64), mesh, [Shard(0)])
        for place, tensor in enumerate((whole, whole.view(32, 128))):
            census.note(place, tensor, Kept(tensor), None)
    [group] = census.groups
    assert (group.nbytes, group.places) == (32 * 64 * 4, [0, 1])
