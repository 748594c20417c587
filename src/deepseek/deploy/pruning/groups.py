"""What can be cut from a model only together: a channel and all that makes and reads it.

In our transformers a unit is a head (of keys, with the queries that share it) or a hidden feature
of the feed-forward network, as `ParallelHints` names them; the stream that all blocks add to keeps
its width. Elsewhere a unit is a channel, found by the dependency graph of torch-pruning (Fang et
al. 2023, arXiv 2301.12900). That graph takes operators it does not know for element-wise ones, so
that each group is tried before it is used (`find_groups`).
"""

import copy
from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from deepseek.deploy.fusion import first_tensor
from deepseek.deploy.pruning.graph_groups import trace_groups
from deepseek.deploy.pruning.units import Cut, Group, cut_tensors, silence
from deepseek.models import ModelEngine
from deepseek.models.classifier import BlockModel
from deepseek.models.cut import find_tensor, replace_tensors
from deepseek.models.full_float32 import full_float32

TOLERANCE = 1e-3
"""Largest difference between a model that is cut and one whose units are silenced, as a share of
the largest output: more than rounding, less than what a channel does."""
Kept = list[tuple[str, str]]


def find_groups(
    engine: ModelEngine, inputs: Tensor, skip: Collection[str] = ()
) -> tuple[list[Group], Kept]:
    """Return what can be cut from a model, and what cannot, with the reason.

    A group is used only if the model without half of its units computes what it does with them
    silenced, on `inputs`.

    Args:
        engine: not changed.
        inputs: (B, ...), as the module takes them.
        skip: names of modules, or beginnings of them, that are left as they are.
    """
    module = copy.deepcopy(engine.module).eval()
    if isinstance(module, BlockModel):
        groups, kept = _block_groups(module, engine), []
    else:
        groups, kept = trace_groups(module, inputs)
    usable = []
    for group in groups:
        touched = {cut.tensor for cut in group.cuts}
        if skip and any(name.startswith(tuple(skip)) for name in touched):
            kept.append((group.name, "it is skipped"))
        elif group.num_units > 1:
            usable.append(group)
    return _tested(module, usable, inputs, kept)


def _tested(
    module: nn.Module, groups: list[Group], inputs: Tensor, kept: Kept
) -> tuple[list[Group], Kept]:
    """Return the groups that can be cut: all at once if that works, else one by one."""
    if groups and _why_not(module, groups, inputs) is None:
        return groups, kept
    usable = []
    for group in groups:
        reason = _why_not(module, [group], inputs)
        if reason is None:
            usable.append(group)
        else:
            kept.append((group.name, reason))
    return usable, kept


def _why_not(module: nn.Module, groups: Sequence[Group], inputs: Tensor) -> str | None:
    silenced, smaller = copy.deepcopy(module), copy.deepcopy(module)
    halves = {group.name: torch.arange(group.num_units) % 2 == 0 for group in groups}
    for group in groups:
        silence(silenced, group, halves[group.name])
    try:
        replace_tensors(smaller, cut_tensors(module, groups, halves))
        with torch.no_grad(), full_float32():
            want, found = first_tensor(silenced(inputs)), first_tensor(smaller(inputs))
    except (RuntimeError, ValueError, IndexError) as error:
        return f"the model does not run without them: {str(error).splitlines()[0]}"
    if want.shape != found.shape:
        return "the outputs have another shape without them"
    difference = float((want - found).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(want.abs().max())):
        return "what is left computes something else without them"
    return None


def _block_groups(module: BlockModel, engine: ModelEngine) -> list[Group]:
    """Return heads and hidden features of the blocks of one of our transformers."""
    hints = engine.hints
    fused = dict(hints.fused_heads)
    groups = []
    for path in hints.blocks:
        for index, block in enumerate(module.get_submodule(path).children()):
            begin = f"{path}.{index}."
            for is_attention in (True, False):
                columns = [n for n in hints.column_linears if n.startswith("attn.") == is_attention]
                rows = [n for n in hints.row_linears if n.startswith("attn.") == is_attention]
                attn = block.get_submodule("attn")
                width = cast(int, attn.head_dim) if is_attention else 1
                groups.append(_of_linears(block, begin, columns, rows, width, fused))
    return groups


def _of_linears(
    block: nn.Module,
    begin: str,
    columns: Sequence[str],
    rows: Sequence[str],
    head_dim: int,
    fused: dict[str, int],
) -> Group:
    """Return the units that some linears of a block make and others read, alike divided."""
    sizes = {n: _shape(block, n)[0] // fused.get(n, 1) for n in columns}
    num_units = min(sizes.values()) // head_dim
    cuts = []
    for name, size in sizes.items():
        unit_of = (torch.arange(size) // (size // num_units)).repeat(fused.get(name, 1))
        for attribute in ("weight", "bias"):
            if getattr(block.get_submodule(name), attribute) is not None:
                cuts.append(Cut(f"{begin}{name}.{attribute}", 0, unit_of, reads=False))
    for name in rows:
        size = _shape(block, name)[1]
        unit_of = torch.arange(size) // (size // num_units)
        cuts.append(Cut(f"{begin}{name}.weight", 1, unit_of, reads=True))
    kind = "heads" if head_dim > 1 else "features"
    return Group(begin + columns[0], kind, num_units, tuple(cuts))


def _shape(block: nn.Module, name: str) -> torch.Size:
    return find_tensor(block, f"{name}.weight").shape
