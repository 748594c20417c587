"""A model cut into the stages of a pipeline.

A stage is the model with only some of its blocks, and embeddings or head only at the ends; weights
keep the names that they have in the whole model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepseek.models import ModelEngine, ParallelHints
from deepseek.models.classifier import BlockModel


def stage_ids(rank: int, degree: int, per_rank: int, *, is_v: bool) -> list[int]:
    """Return the numbers of the stages on a rank: in rounds, or there and back (a V)."""
    if is_v:
        return [rank, 2 * degree - 1 - rank]
    return [rank + degree * turn for turn in range(per_rank)]


def block_ranges(num_blocks: int, num_stages: int) -> list[range]:
    """Return the blocks of each stage; later ones get the rest, for the first has embeddings."""
    size, rest = divmod(num_blocks, num_stages)
    ranges, start = [], 0
    for stage in range(num_stages):
        end = start + size + (stage >= num_stages - rest)
        ranges.append(range(start, end))
        start = end
    return ranges


class Stage(nn.Module):
    """Part of a model, from the output of the stage before to the input of the one after.

    Args:
        engine: prepares the inputs of the first stage.
        model: the model without what is not of the stage.
        blocks: numbers of its blocks.
        is_first: whether it takes the inputs.
        is_last: whether it gives the logits.
    """

    def __init__(
        self, engine: ModelEngine, model: nn.Module, blocks: range, is_first: bool, is_last: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.is_first, self.is_last = is_first, is_last
        self.block_ids = blocks
        self._engine = (engine,)  # a tuple: not a module of this one

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of the stage, in order."""
        row = self.model.blocks if isinstance(self.model, BlockModel) else self.model
        return [row[index] for index in self.block_ids]  # pyright: ignore[reportIndexIssue]

    def forward(self, x: Tensor, **beside: Tensor) -> Tensor:
        """Run the stage on one micro-batch."""
        if self.is_first:
            x = self._engine[0].prepare(x)
            if isinstance(self.model, BlockModel):
                x = self.model.embed(x)
        for block in self.blocks:
            own = self.model.beside_in(block) if isinstance(self.model, BlockModel) else {}
            x = block(x, **beside, **own)
        if self.is_last and isinstance(self.model, BlockModel):
            x = self.model.classify(x)
        return x.contiguous()  # it is sent as it lies


def cut_stage(
    engine: ModelEngine, hints: ParallelHints, blocks: range, *, is_first: bool, is_last: bool
) -> Stage:
    """Return a stage of the model of `engine`, which stays as it is; weights are shared with it."""
    model = shallow_copy(engine.module)
    if not isinstance(model, BlockModel):
        for index in range(len(model)):  # pyright: ignore[reportArgumentType]
            if index not in blocks:
                model._modules[str(index)] = nn.Identity()
        return Stage(engine, model, blocks, is_first, is_last)
    row = model._modules["blocks"] = shallow_copy(model.blocks)
    for index in range(len(model.blocks)):
        if index not in blocks:
            row._modules[str(index)] = nn.Identity()
    heads = {name.partition(".")[0] for name in hints.head}
    for name, module in model._modules.items():
        is_here = is_last if name in heads else is_first
        has_weights = module is not None and any(True for _ in module.parameters())
        if name != "blocks" and has_weights and not is_here:
            model._modules[name] = None
    if not is_first:
        model._parameters = dict.fromkeys(model._parameters)
    return Stage(engine, model, blocks, is_first, is_last)


def shallow_copy(module: nn.Module) -> nn.Module:
    """Return a module with tables of its own that hold the same parts."""
    other = module.__class__.__new__(module.__class__)
    other.__dict__ = module.__dict__.copy()
    other._modules = module._modules.copy()
    other._parameters = module._parameters.copy()
    other._buffers = module._buffers.copy()
    return other


@torch.no_grad()
def untie(stages: Sequence[Stage], names: Sequence[tuple[str, str]]) -> None:
    """Give the last stage a copy of each weight that it shares with the first.

    Args:
        stages: on this rank.
        names: pairs (name in the first stage, name in the last).
    """
    for stage in stages:
        if stage.is_last and not stage.is_first:
            for _, name in names:
                owner, _, key = name.rpartition(".")
                module = stage.model.get_submodule(owner)
                alike = shallow_copy(module)
                alike._parameters[key] = nn.Parameter(module._parameters[key].detach().clone())  # pyright: ignore[reportOptionalMemberAccess]
                _replace(stage.model, owner, alike)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, key = path.rpartition(".")
    model.get_submodule(owner)._modules[key] = module


def tied_names(model: nn.Module) -> list[tuple[str, str]]:
    """Return pairs of names of one weight: the first, and another."""
    first: dict[int, str] = {}
    pairs = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            pairs.append((known, name))
    return pairs
