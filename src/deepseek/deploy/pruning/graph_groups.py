"""Groups of channels, found by the dependency graph of torch-pruning."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from deepseek.deploy.pruning.units import Cut, Group
from deepseek.errors import ConfigError
from deepseek.models.cut import is_depthwise
from deepseek.registry import import_extra

Kept = list[tuple[str, str]]


def trace_groups(module: nn.Module, inputs: Tensor) -> tuple[list[Group], Kept]:
    """Return the groups of a module, and those that cannot be cut, with the reason.

    Args:
        module: in evaluation.
        inputs: that it can compute.

    Raises:
        ConfigError: its computation cannot be traced.
        MissingExtraError: torch-pruning is not installed.
    """
    pruning = import_extra("torch_pruning", "deploy")
    names = {part: name for name, part in module.named_modules()}
    groups, kept = [], []
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph = pruning.DependencyGraph().build_dependency(module, inputs, verbose=False)
            found = list(graph.get_all_groups())
        except Exception as error:  # torch-pruning raises what it likes
            raise ConfigError(
                f"the channels of this model cannot be traced: {error or type(error).__name__}",
                fix='drop whole blocks (what="depth"), or zero weights (pattern="2:4")',
            ) from error
    for items in found:
        name = names[items[0].dep.target.module]
        cuts, reason = _cuts_of(items, names, graph)
        if reason is not None:
            kept.append((name, reason))
        elif any(cut.reads for cut in cuts):
            num_units = int(cuts[0].unit_of.max()) + 1
            groups.append(Group(name, "channels", num_units, tuple(cuts)))
        else:
            kept.append((name, "its channels are the outputs of the model"))
    return groups, kept


def _cuts_of(items, names: dict, graph) -> tuple[list[Cut], str | None]:
    cuts: list[Cut] = []
    for item in items:
        part = item.dep.target.module
        if type(part).__name__ == "_OutputOp":
            return [], "its channels are the outputs of the model"
        if type(part).__module__.startswith("torch_pruning"):
            continue  # an operator without weights
        if part not in names:
            return [], "a parameter outside of layers has its width"
        makes = graph.is_out_channel_pruning_fn(item.dep.handler)
        where = _tensors_of(part, makes)
        if where is None:
            return [], f"{names[part]} is a {_describe(part)}"
        if None in item.root_idxs:
            return [], f"its channels cannot be followed to {names[part]}"
        for attribute, dim in where.items():
            tensor = getattr(part, attribute)
            unit_of = torch.full((tensor.shape[dim],), -1)
            unit_of[torch.tensor(item.idxs)] = torch.tensor(item.root_idxs)
            cuts.append(Cut(f"{names[part]}.{attribute}", dim, unit_of, reads=not makes))
    return cuts, None


def _tensors_of(part: nn.Module, makes: bool) -> dict[str, int] | None:
    """Return attribute -> dim of the tensors that have the channels; `None` if it cannot be cut."""
    if isinstance(part, _ConvNd):
        if part.groups > 1 and not is_depthwise(part):
            return None
        is_first = makes != isinstance(part, _ConvTransposeNd) or part.groups > 1
        where = {"weight": 0 if is_first else 1} | ({"bias": 0} if makes else {})
    elif isinstance(part, nn.Linear):
        where = {"weight": 0, "bias": 0} if makes else {"weight": 1}
    elif isinstance(part, _NormBase):
        where = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
    elif isinstance(part, nn.PReLU):
        where = {"weight": 0} if part.num_parameters > 1 else {}
    else:
        return None
    return {name: dim for name, dim in where.items() if getattr(part, name) is not None}


def _describe(part: nn.Module) -> str:
    groups = getattr(part, "groups", 1)
    return f"{type(part).__name__}" + (f" with groups={groups}" if groups > 1 else "")
