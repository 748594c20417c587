"""Modules made smaller in place: tensors without some of their rows, module lists without blocks.

A model file says what is left as data: the shape of each tensor that was cut, and which blocks of
a list were kept.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

KIND = "pruned"


def apply_cut(module: nn.Module, table: Mapping) -> None:
    """Make a module as small as the table of a model file says; its weights come later.

    Args:
        module: as it was before it was pruned, possibly on the meta device.
        table: `blocks` (name of a module list -> indices of those kept) and `shapes` (name of a
            tensor -> its shape).

    Raises:
        ValueError, AttributeError, TypeError: the table does not fit the module.
    """
    if table.keys() != {"kind", "blocks", "shapes"}:
        raise ValueError(f"its table has the keys {sorted(table)}")
    keep_blocks(module, table["blocks"])
    tensors = {}
    for name, shape in table["shapes"].items():
        old = find_tensor(module, name)
        if not _is_smaller(shape, old.shape):
            raise ValueError(f"{name} of shape {tuple(old.shape)} cannot be cut to {shape}")
        tensors[name] = old.new_empty(shape)
    replace_tensors(module, tensors)


def keep_blocks(module: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Leave some blocks of module lists out.

    Raises:
        ValueError: a list would be empty, or an index is not one of the list.
    """
    # a list inside a block first: its name holds the number of the block
    for name in sorted(kept, key=lambda name: (name != "", name.count(".")), reverse=True):
        indices, blocks = kept[name], module.get_submodule(name)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential):
            raise ValueError(f"{name} is no list of modules")
        is_rising = list(indices) == sorted(set(indices))
        if not indices or not is_rising or not 0 <= indices[0] <= indices[-1] < len(blocks):
            raise ValueError(f"{name} has {len(blocks)} blocks, not {list(indices)}")
        # deleted, not rebuilt: the list may be of a class of its own
        for index in reversed(range(len(blocks))):
            if index not in indices:
                del blocks[index]


def find_tensor(module: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer by its full name."""
    owner, _, attribute = name.rpartition(".")
    tensor = getattr(module.get_submodule(owner), attribute)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is no tensor")
    return tensor


def replace_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of other sizes into a module, and let its layers know their new sizes.

    Args:
        module: changed in place.
        tensors: full name -> what takes the place of the tensor.

    Raises:
        ValueError: a layer is of a kind that cannot be cut.
    """
    owners = {}
    for name, tensor in tensors.items():
        path, _, attribute = name.rpartition(".")
        owner = owners[path] = module.get_submodule(path)
        old = getattr(owner, attribute)
        if isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor, old.requires_grad)
        setattr(owner, attribute, tensor)
    for path, owner in owners.items():
        _note_sizes(owner, path)


def _note_sizes(owner: nn.Module, path: str) -> None:
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
    elif isinstance(owner, _ConvNd):
        _note_channels(owner, path)
    elif isinstance(owner, _NormBase):
        sized = owner.weight if owner.weight is not None else owner.running_mean
        owner.num_features = 0 if sized is None else len(sized)
    elif isinstance(owner, nn.PReLU):
        owner.num_parameters = len(owner.weight)
    else:
        raise ValueError(f"{path} is a {type(owner).__name__}, which cannot be cut")


def _note_channels(conv: _ConvNd, path: str) -> None:
    first, second = conv.weight.shape[:2]
    if conv.groups == 1:
        is_transposed = isinstance(conv, _ConvTransposeNd)
        conv.in_channels, conv.out_channels = (first, second) if is_transposed else (second, first)
    elif is_depthwise(conv):
        conv.in_channels = conv.out_channels = conv.groups = first
    else:
        raise ValueError(f"{path} has groups={conv.groups}, which cannot be cut")


def is_depthwise(conv: _ConvNd) -> bool:
    """Return whether a convolution treats each channel alone, and keeps their number."""
    return conv.groups > 1 and conv.groups == conv.in_channels == conv.out_channels


def _is_smaller(shape: object, old: torch.Size) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) == len(old)
        and all(type(new) is int and 1 <= new <= size for new, size in zip(shape, old, strict=True))
    )
