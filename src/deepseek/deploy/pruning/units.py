"""Units of a model that go or stay as one, and the tensors without those that go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepseek.models.cut import find_tensor


@dataclass(frozen=True)
class Cut:
    """What units are in one dimension of one tensor.

    Attributes:
        tensor: full name of a parameter or buffer.
        dim: of the tensor.
        unit_of: number of the unit that each place of `dim` belongs to; -1: to none.
        reads: whether the tensor reads the features, rather than makes them.
    """

    tensor: str
    dim: int
    unit_of: Tensor
    reads: bool


@dataclass(frozen=True)
class Group:
    """Units of one kind, of which some may be cut.

    Attributes:
        name: of the first module that makes them.
        kind: "channels", "features" or "heads".
        num_units: how many there are.
        cuts: every tensor that they are in.
    """

    name: str
    kind: str
    num_units: int
    cuts: tuple[Cut, ...]


def cut_tensors(
    module: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors that lose something, without it.

    Args:
        module: they belong to; not changed.
        groups: of the module.
        kept: name of a group -> which of its units stay, boolean (units,).
    """
    places: dict[str, dict[int, Tensor]] = {}
    for group in groups:
        if group.name not in kept or bool(kept[group.name].all()):
            continue
        for cut in group.cuts:
            stays = _stays(cut, kept[group.name])
            dims = places.setdefault(cut.tensor, {})
            dims[cut.dim] = dims[cut.dim] & stays if cut.dim in dims else stays
    cut_down = {}
    for name, dims in places.items():
        tensor = find_tensor(module, name).detach()
        for dim, stays in dims.items():
            tensor = tensor.index_select(dim, stays.nonzero().flatten().to(tensor.device))
        cut_down[name] = tensor
    return cut_down


@torch.no_grad()
def silence(module: nn.Module, group: Group, kept: Tensor) -> None:
    """Zero, in place, what reads the units that go: the model computes as if they were cut.

    Args:
        module: changed.
        group: of the module.
        kept: which of its units stay, boolean (units,).
    """
    for cut in group.cuts:
        if cut.reads:
            tensor = find_tensor(module, cut.tensor)
            gone = (~_stays(cut, kept)).nonzero().flatten()
            tensor.index_fill_(cut.dim, gone.to(tensor.device), 0)


def _stays(cut: Cut, kept: Tensor) -> Tensor:
    return (cut.unit_of < 0) | kept[cut.unit_of.clamp(min=0)]
