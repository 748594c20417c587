"""Which units go, so that what is left costs as little as was asked for."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepseek.deploy.pruning.cost import count, skeleton_of
from deepseek.deploy.pruning.importance import Importance
from deepseek.deploy.pruning.units import Group, cut_tensors
from deepseek.errors import ConfigError
from deepseek.models.cut import keep_blocks, replace_tensors

BUDGETS = ("flops", "parameters")


@dataclass(frozen=True)
class Budget:
    """What is to be left.

    Attributes:
        kind: "flops", of a forward pass, or "parameters".
        share: of what the model has now, in (0, 1).
    """

    kind: str
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(
                f"{self.kind}={self.share} is not a share between 0 and 1",
                fix=f"give the share that is to be left, such as {self.kind}=0.5",
            )


def choose_units(
    module: nn.Module,
    groups: Sequence[Group],
    importance: Importance,
    budget: Budget,
    inputs: Tensor,
    min_kept: float,
) -> dict[str, Tensor]:
    """Return which units stay: the fewest go, of those that matter least, that keep to the budget.

    Args:
        module: not changed.
        groups: of the module.
        importance: of their units.
        budget: what is to be left.
        inputs: (B, ...), as the module takes them.
        min_kept: share of the units of a group that stay in any case; at least one does.

    Returns:
        Name of a group -> which of its units stay, boolean (units,).

    Raises:
        ConfigError: the budget cannot be kept.
    """
    if not 0 <= min_kept < 1:
        raise ConfigError(f"min_kept={min_kept} is not a share below 1", fix="use min_kept=0.1")
    owners, units, scores = [], [], []
    for number, group in enumerate(groups):
        matters = importance[group.name]
        num_spare = group.num_units - max(1, math.ceil(min_kept * group.num_units))
        least = matters.argsort()[:num_spare]
        owners.append(torch.full((num_spare,), number))
        units.append(least)
        scores.append(matters[least])
    order = torch.cat(scores).argsort(stable=True)
    owner, unit = torch.cat(owners)[order], torch.cat(units)[order]

    def kept_without(num_gone: int) -> dict[str, Tensor]:
        kept = {group.name: torch.ones(group.num_units, dtype=torch.bool) for group in groups}
        for number, group in enumerate(groups):
            kept[group.name][unit[:num_gone][owner[:num_gone] == number]] = False
        return kept

    skeleton = skeleton_of(module)

    def without(num_gone: int) -> nn.Module:
        smaller = copy.deepcopy(skeleton)
        replace_tensors(smaller, cut_tensors(smaller, groups, kept_without(num_gone)))
        return smaller

    return kept_without(_fewest(without, len(order), budget, inputs))


def choose_blocks(
    module: nn.Module, influence: dict[tuple[str, int], float], budget: Budget, inputs: Tensor
) -> dict[str, list[int]]:
    """Return which blocks stay: the fewest go, of those that change least, that keep to the budget.

    Args:
        module: not changed.
        influence: (name of the list, index) -> how much a block changes what goes through it.
        budget: what is to be left.
        inputs: (B, ...), as the module takes them.

    Returns:
        Name of a list -> indices of those that stay, for lists that lose some.

    Raises:
        ConfigError: the budget cannot be kept.
    """
    sizes = {path: len(list(module.get_submodule(path).children())) for path, _ in influence}
    order, left = [], dict(sizes)
    for path, index in sorted(influence, key=lambda each: influence[each]):
        if left[path] > 1:
            left[path] -= 1
            order.append((path, index))

    def kept_without(num_gone: int) -> dict[str, list[int]]:
        gone = order[:num_gone]
        paths = dict.fromkeys(path for path, _ in gone)
        return {path: [i for i in range(sizes[path]) if (path, i) not in gone] for path in paths}

    skeleton = skeleton_of(module)

    def without(num_gone: int) -> nn.Module:
        smaller = copy.deepcopy(skeleton)
        keep_blocks(smaller, kept_without(num_gone))
        return smaller

    return kept_without(_fewest(without, len(order), budget, inputs))


def _fewest(
    without: Callable[[int], nn.Module], num_spare: int, budget: Budget, inputs: Tensor
) -> int:
    """Return how many must go, by bisection: fewer parts never cost more."""
    which = BUDGETS.index(budget.kind)

    def left(num_gone: int) -> int:
        return count(without(num_gone), inputs)[which]

    whole = left(0)
    least = left(num_spare) / whole
    if least > budget.share:
        raise ConfigError(
            f"{budget.kind}={budget.share:g} would empty a layer: with all that can be cut gone,"
            f" {least:.3f} are left",
            fix=f"ask for {budget.kind}={math.ceil(100 * least) / 100:g} or more, or skip less",
        )
    low, high = 0, num_spare
    while low < high:
        middle = (low + high) // 2
        if left(middle) <= budget.share * whole:
            high = middle
        else:
            low = middle + 1
    return low
