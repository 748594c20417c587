"""The cheapest way to keep to a budget: what waits on the host, and what is computed again.

```
pointwise   is made again first: it costs almost nothing
the host    then takes what goes there and comes back while the device computes: the earliest of a
            pass, which lie idle longest
the rest    is given up by whatever costs less: a matrix product that is done again, a copy that is
            waited for, or a whole block that is recomputed and keeps its inputs alone. A knapsack,
            solved by dynamic programming (Bellman 1957) over bytes in steps of a thousandth
```
Bytes and seconds are those measured in a pass of this model.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepseek.memory.epsilons import Epsilons
from deepseek.memory.host_copies import can_be_copied, storages_of
from deepseek.memory.host_link import HostLink
from deepseek.memory.policy import ALL_KINDS
from deepseek.memory.recipe import Cookbook, Kind, Recipe
from deepseek.memory.saved import Packed, Remade, source_of

NUM_STEPS = 1000


@dataclass
class Group:
    """Saved tensors that share their memory: all of them are given up, or none.

    Attributes:
        nbytes: of the memory.
        places: of the tensors among those saved in a pass.
        cost_s: seconds of making them again; `None` where that is not possible.
        can_be_copied: whether they may wait on the host.
        block: number of the one that has saved them, if recomputing it would free them.
    """

    nbytes: int
    places: list[int] = field(default_factory=list)
    cost_s: float | None = 0.0
    can_be_copied: bool = True
    block: int | None = None


class Block(NamedTuple):
    """A part of the model that can be recomputed as one.

    Attributes:
        number: among the blocks.
        cost_s: seconds of its forward pass.
    """

    number: int
    cost_s: float


@dataclass(frozen=True)
class Choice:
    """What is given up for a budget.

    Attributes:
        remade: matrix products that are done again.
        copied: what waits on the host.
        blocks: that are recomputed as one.
        cost_s: seconds that all add to a pass.
    """

    remade: tuple[Group, ...] = ()
    copied: tuple[Group, ...] = ()
    blocks: tuple[Block, ...] = ()
    cost_s: float = 0.0

    @property
    def remade_bytes(self) -> int:
        """Bytes of products that are done again."""
        return sum(group.nbytes for group in self.remade)

    @property
    def copied_bytes(self) -> int:
        """Bytes on the host."""
        return sum(group.nbytes for group in self.copied)


class Host(NamedTuple):
    """What the host may take.

    Attributes:
        hidden_bytes: at no cost.
        link: what more costs; `None`: it takes no more.
    """

    hidden_bytes: float
    link: HostLink | None = None


class Census:
    """An observer: what a pass keeps, what it makes again, and what else it could.

    Args:
        epsilons: of the model's norms.
        device: whose work is waited for when time is taken.

    Attributes:
        remade_bytes: of what the policy makes again.
    """

    def __init__(self, epsilons: Epsilons, device: torch.device) -> None:
        self._products = Cookbook(epsilons, ALL_KINDS)
        self._device = device
        self._groups: dict[int, Group] = {}
        self._timed: dict[int, Recipe] = {}
        self._remade: dict[int, Remade] = {}
        self._block: int | None = None
        self._ends: dict[int, set[int]] = {}
        self._own_s = 0.0
        self._block_s: dict[int, float] = {}
        self.remade_bytes = 0

    @property
    def groups(self) -> list[Group]:
        """What is kept."""
        return list(self._groups.values())

    @property
    def blocks(self) -> list[Block]:
        """What was watched."""
        return [Block(number, cost_s) for number, cost_s in self._block_s.items()]

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept."""
        held = sum(each.held_bytes for each in self._remade.values())
        return held + sum(group.nbytes for group in self._groups.values())

    @property
    def all_bytes(self) -> int:
        """Bytes that would be kept without a policy."""
        return sum(group.nbytes for group in self._groups.values()) + self.remade_bytes

    @contextmanager
    def watching(self, blocks: dict[int, nn.Module]) -> Iterator[None]:
        """Learn inside what each block saves, and what its forward pass costs.

        Args:
            blocks: by their numbers.
        """
        with ExitStack() as stack:
            for number, block in blocks.items():
                self._watch(stack, number, block)
            yield

    def _watch(self, stack: ExitStack, number: int, block: nn.Module) -> None:
        ends, began = self._ends.setdefault(number, set()), [0.0]

        def enter(module: nn.Module, args: tuple, options: dict) -> None:
            self._block = number
            ends.update(_storages_in((args, options)))
            self._wait()
            began[0] = perf_counter() - self._own_s

        def leave(module: nn.Module, args: tuple, options: dict, outputs: object) -> None:
            self._wait()
            taken_s = perf_counter() - self._own_s - began[0]
            self._block_s[number] = self._block_s.get(number, 0.0) + taken_s
            ends.update(_storages_in(outputs))
            self._block = None

        for handle in (
            block.register_forward_pre_hook(enter, with_kwargs=True),
            block.register_forward_hook(leave, with_kwargs=True),
        ):
            stack.callback(handle.remove)

    def note(self, place: int, tensor: Tensor, packed: Packed, kind: Kind | None) -> None:
        """Count a tensor."""
        began = perf_counter()
        self._count(place, tensor, packed)
        self._own_s += perf_counter() - began

    def _count(self, place: int, tensor: Tensor, packed: Packed) -> None:
        storages = storages_of(tensor)
        num_bytes = sum(storage.nbytes() for storage in storages)
        if isinstance(packed, Remade):
            if packed.recipe_id not in self._remade:
                self._remade[packed.recipe_id] = packed  # alive, so that the id is its own
                self.remade_bytes += num_bytes
            return
        key = storages[0]._cdata
        group = self._groups.setdefault(key, Group(num_bytes, block=self._block))
        group.places.append(place)
        if group.block != self._block:  # another one needs it as well
            group.block = None
        group.can_be_copied &= can_be_copied(tensor)
        recipe = self._products.find(source_of(tensor))
        if recipe is None or group.cost_s is None:
            group.cost_s = None
        elif id(recipe) not in self._timed:
            self._timed[id(recipe)] = recipe
            group.cost_s += self._time(recipe)

    def _time(self, recipe: Recipe) -> float:
        self._wait()
        began = perf_counter()
        recipe.rehearse()
        self._wait()
        return perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def forget(self) -> None:
        """Let go of the tensors that were looked at."""
        for key, group in self._groups.items():
            if group.block is not None and key in self._ends[group.block]:
                group.block = None  # an input, which stays, or an output, which is another's input
        self._timed.clear()
        self._remade.clear()


def _storages_in(values: object) -> Iterator[int]:
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            yield storages_of(leaf)[0]._cdata


def choose(
    groups: Sequence[Group],
    to_free: float,
    host: Host | None = None,
    blocks: Sequence[Block] = (),
) -> Choice | None:
    """Return how `to_free` bytes are given up at the least cost; `None`: they cannot be.

    Args:
        groups: what is kept, in the order in which it is saved.
        to_free: bytes.
        host: what it may take; `None`: nothing.
        blocks: that may be recomputed as one.
    """
    host = host or Host(0.0)
    copied, rest, left = [], [], to_free
    for group in groups:
        hidden = sum(each.nbytes for each in copied) + group.nbytes
        if left > 0 and group.can_be_copied and hidden <= host.hidden_bytes:
            copied.append(group)
            left -= group.nbytes
        else:
            rest.append(group)
    dearer = [_waited_for(group, host.link) for group in rest]
    chosen = cheapest(
        [trip or group for group, trip in zip(rest, dearer, strict=True)], left, blocks
    )
    if chosen is None:
        return None
    taken = {id(each) for each in chosen}
    copied += [group for group, trip in zip(rest, dearer, strict=True) if id(trip) in taken]
    remade = tuple(group for group in rest if id(group) in taken)
    whole = tuple(each for each in chosen if isinstance(each, Block))
    return Choice(remade, tuple(copied), whole, sum(each.cost_s or 0.0 for each in chosen))


def _waited_for(group: Group, link: HostLink | None) -> Group | None:
    """Return a group at the cost of a copy that hides behind nothing, if that is the lower one."""
    if link is None or not group.can_be_copied:
        return None
    cost_s = link.round_trip_s(group.nbytes)
    is_less = group.cost_s is None or cost_s < group.cost_s
    return replace(group, cost_s=cost_s) if is_less else None


def cheapest(
    groups: Sequence[Group], to_free: float, blocks: Sequence[Block] = ()
) -> list[Group | Block] | None:
    """Return what frees `to_free` bytes at the least cost; `None`: they cannot be freed.

    Args:
        groups: what is kept; each is given up by itself, or with its block.
        to_free: bytes.
        blocks: each is recomputed as one, or not.
    """
    if to_free <= 0:
        return []
    candidates: list[Group | Block] = []
    sizes: list[int] = []
    begins: list[int] = []  # of a block: the first candidate that it stands for
    known = {block.number for block in blocks}
    for block in (None, *blocks):
        begin = len(candidates)
        own = [g for g in groups if _block_of(g, known) == (block and block.number)]
        able = [group for group in own if group.cost_s is not None]
        candidates += able
        sizes += [group.nbytes for group in able]
        begins += [0] * len(able)
        if block is not None:
            candidates.append(block)
            sizes.append(sum(group.nbytes for group in own))
            begins.append(begin)
    most = _everything(candidates)
    if sum(sizes[number] for number in most) < to_free:
        return None
    taken = _fill(candidates, sizes, begins, to_free / NUM_STEPS)
    return [candidates[number] for number in (most if taken is None else taken)]


def _block_of(group: Group, known: Collection[int]) -> int | None:
    return group.block if group.block in known else None


def _everything(candidates: Sequence[Group | Block]) -> list[int]:
    """Return the numbers of all blocks, and of the groups that lie in none of them."""
    known = {each.number for each in candidates if isinstance(each, Block)}
    return [
        number
        for number, each in enumerate(candidates)
        if isinstance(each, Block) or _block_of(each, known) is None
    ]


def _fill(
    candidates: Sequence[Group | Block], sizes: list[int], begins: list[int], unit: float
) -> list[int] | None:
    """Return the numbers of the candidates that free `NUM_STEPS` units at the least cost.

    `None`: it fails, by less than the rounding of steps.

    Args:
        candidates: the groups of a block stand before it.
        sizes: bytes of each.
        begins: of a block, the number of its first group.
        unit: bytes.
    """
    costs = np.full(NUM_STEPS + 1, np.inf)  # costs[n]: of freeing n steps or more
    costs[0] = 0.0
    before = [costs]  # of each candidate
    taken = np.zeros((len(candidates), NUM_STEPS + 1), dtype=bool)
    needed = np.arange(NUM_STEPS + 1)
    for number, each in enumerate(candidates):
        begin = before[begins[number] if isinstance(each, Block) else number]
        rest = np.maximum(0, needed - int(sizes[number] / unit))
        with_it = begin[rest] + (each.cost_s or 0.0)
        taken[number] = with_it < costs
        costs = np.where(taken[number], with_it, costs)
        before.append(costs)
    if np.isinf(costs[NUM_STEPS]):
        return None
    chosen, left, number = [], NUM_STEPS, len(candidates) - 1
    while number >= 0:
        is_taken = taken[number, left]
        if is_taken:
            chosen.append(number)
            left = max(0, left - int(sizes[number] / unit))
        is_whole = is_taken and isinstance(candidates[number], Block)
        number = begins[number] - 1 if is_whole else number - 1
    return chosen
