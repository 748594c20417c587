"""The cheapest way to keep to a budget: what waits on the host, and what products are done again.

```
pointwise   is made again first: it costs almost nothing
the host    then takes what goes there and comes back while the device computes: the earliest of a
            pass, which lie idle longest
the rest    is given up by whatever costs less, a matrix product or a copy that is waited for: a
            knapsack, solved by dynamic programming (Bellman 1957) over bytes in steps of a
            thousandth
```
Bytes and seconds are those measured in a pass of this model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

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
    """

    nbytes: int
    places: list[int] = field(default_factory=list)
    cost_s: float | None = 0.0
    can_be_copied: bool = True


@dataclass(frozen=True)
class Choice:
    """What is given up for a budget.

    Attributes:
        remade: matrix products that are done again.
        copied: what waits on the host.
        cost_s: seconds that both add to a pass.
    """

    remade: tuple[Group, ...] = ()
    copied: tuple[Group, ...] = ()
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
        self.remade_bytes = 0

    @property
    def groups(self) -> list[Group]:
        """What is kept."""
        return list(self._groups.values())

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept."""
        held = sum(each.held_bytes for each in self._remade.values())
        return held + sum(group.nbytes for group in self._groups.values())

    @property
    def all_bytes(self) -> int:
        """Bytes that would be kept without a policy."""
        return sum(group.nbytes for group in self._groups.values()) + self.remade_bytes

    def note(self, place: int, tensor: Tensor, packed: Packed, kind: Kind | None) -> None:
        """Count a tensor."""
        storages = storages_of(tensor)
        num_bytes = sum(storage.nbytes() for storage in storages)
        if isinstance(packed, Remade):
            if packed.recipe_id not in self._remade:
                self._remade[packed.recipe_id] = packed  # alive, so that the id is its own
                self.remade_bytes += num_bytes
            return
        group = self._groups.setdefault(storages[0]._cdata, Group(num_bytes))
        group.places.append(place)
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
        self._timed.clear()
        self._remade.clear()


def choose(groups: Sequence[Group], to_free: float, host: Host | None = None) -> Choice | None:
    """Return how `to_free` bytes are given up at the least cost; `None`: they cannot be.

    Args:
        groups: what is kept, in the order in which it is saved.
        to_free: bytes.
        host: what it may take; `None`: nothing.
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
    chosen = cheapest([trip or group for group, trip in zip(rest, dearer, strict=True)], left)
    if chosen is None:
        return None
    taken = {id(each) for each in chosen}
    copied += [group for group, trip in zip(rest, dearer, strict=True) if id(trip) in taken]
    remade = tuple(group for group in rest if id(group) in taken)
    return Choice(remade, tuple(copied), sum(each.cost_s or 0.0 for each in chosen))


def _waited_for(group: Group, link: HostLink | None) -> Group | None:
    """Return a group at the cost of a copy that hides behind nothing, if that is the lower one."""
    if link is None or not group.can_be_copied:
        return None
    cost_s = link.round_trip_s(group.nbytes)
    is_less = group.cost_s is None or cost_s < group.cost_s
    return replace(group, cost_s=cost_s) if is_less else None


def cheapest(groups: Sequence[Group], to_free: float) -> list[Group] | None:
    """Return the groups whose bytes add up to `to_free` at the least cost; `None`: they cannot.

    Args:
        groups: what is kept.
        to_free: bytes.
    """
    if to_free <= 0:
        return []
    candidates = [group for group in groups if group.cost_s is not None]
    if sum(group.nbytes for group in candidates) < to_free:
        return None
    unit = to_free / NUM_STEPS
    costs = np.full(NUM_STEPS + 1, np.inf)  # costs[n]: of freeing n steps or more
    costs[0] = 0.0
    taken = np.zeros((len(candidates), NUM_STEPS + 1), dtype=bool)
    needed = np.arange(NUM_STEPS + 1)
    for number, group in enumerate(candidates):
        before = np.maximum(0, needed - int(group.nbytes / unit))
        with_it = costs[before] + (group.cost_s or 0.0)
        taken[number] = with_it < costs
        costs = np.where(taken[number], with_it, costs)
    if np.isinf(costs[NUM_STEPS]):  # by less than the rounding of steps
        return candidates
    chosen, left = [], NUM_STEPS
    for number in reversed(range(len(candidates))):
        if taken[number, left]:
            chosen.append(candidates[number])
            left = max(0, left - int(candidates[number].nbytes / unit))
    return chosen
