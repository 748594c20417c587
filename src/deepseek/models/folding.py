"""Batch norms that are part of the layer before them: what such a model looks like, empty.

The change `folded` of a model file holds `pairs`: [layer, norm] by name.
"""

from torch import nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def rest_of(norm: nn.Module) -> nn.Module:
    """Return what is left in the place of a norm that was folded.

    Raises:
        ValueError: it is no norm, or may do more than one.
    """
    if type(norm).__name__ == "BatchNormAct2d":  # timm: with its activation in one module
        return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act"))
    if type(norm) not in NORMS:
        raise ValueError(f"a {type(norm).__name__} may do more than a norm")
    return nn.Identity()


def apply_folding(module: nn.Module, change: dict) -> None:
    """Leave out the norms that were folded, in place; their layers have a bias.

    Raises:
        ValueError: a name is not that of such a layer or norm.
    """
    for first, name in change["pairs"]:
        layer = module.get_submodule(first)
        if not isinstance(layer, PRODUCTS):
            raise ValueError(f"{first} is a {type(layer).__name__}")
        module.set_submodule(name, rest_of(module.get_submodule(name)))
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
