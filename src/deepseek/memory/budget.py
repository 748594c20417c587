"""The cheapest way to keep to a budget: which matrix products are done again.

What `pointwise` makes again costs almost nothing, so it comes first. After it the outputs of matrix
products are given up, those first that free the most bytes for their time: a knapsack, solved by
dynamic programming (Bellman 1957) over bytes in steps of a thousandth, with bytes and seconds as
measured in a pass of this model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from deepseek.memory.epsilons import Epsilons
from deepseek.memory.policy import ALL_KINDS
from deepseek.memory.recipe import Cookbook, Kind, Recipe
from deepseek.memory.saved import Packed, Remade

NUM_STEPS = 1000


@dataclass
class Group:
    """Saved tensors that share their memory: all of them are given up, or none.

    Attributes:
        nbytes: of the memory.
        places: of the tensors among those saved in a pass.
        cost_s: seconds of making them again; `None` where that is not possible.
    """

    nbytes: int
    places: list[int] = field(default_factory=list)
    cost_s: float | None = 0.0


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
        storage = tensor.untyped_storage()
        if isinstance(packed, Remade):
            if packed.recipe_id not in self._remade:
                self._remade[packed.recipe_id] = packed  # alive, so that the id is its own
                self.remade_bytes += storage.nbytes()
            return
        group = self._groups.setdefault(storage._cdata, Group(storage.nbytes()))
        group.places.append(place)
        recipe = self._products.find(tensor if tensor._base is None else tensor._base)
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
