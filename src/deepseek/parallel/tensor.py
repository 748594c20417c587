"""Tensor parallelism: heads and hidden features of a block divided between ranks.

Papers: Shoeybi et al. 2019 (Megatron-LM), arXiv 1909.08053, section 3: a column linear and the row
linear after it need one all-reduce; Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2:
sequence parallelism divides the tokens where features are whole. Done by DTensor's own
`parallelize_module`; what to divide is in `ParallelHints`.

A fused projection to queries, keys and values is divided by heads within each of the three: its
rows are put in an order in which a rank's rows are neighbours. `Division.groups` says so to whoever
saves them.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from deepseek.errors import ConfigError
from deepseek.models import ParallelHints
from deepseek.models.classifier import BlockModel
from deepseek.models.decoder import Decoder, TrimVocabulary
from deepseek.models.table_model import TableModel


@dataclass(frozen=True)
class Division:
    """How a weight is divided between the ranks of `tp`.

    Attributes:
        dim: that is cut into equal parts.
        groups: groups of rows that are each cut, and whose parts a rank holds in a row.
    """

    dim: int
    groups: int = 1


def divide_tensors(
    model: BlockModel, hints: ParallelHints, mesh: DeviceMesh, *, sequence: bool, vocabulary: bool
) -> dict[str, Division]:
    """Divide the blocks, and the vocabulary of a language model, between the ranks of `mesh`.

    Args:
        model: all or a stage of it; changed in place.
        hints: of the whole model.
        mesh: the axis `tp`.
        sequence: divide tokens, too.
        vocabulary: divide embedding and logits of a language model.

    Returns:
        How each weight is divided that is, by its name.
    """
    divisions: dict[str, Division] = {}
    fused = dict(hints.fused_heads)
    blocks = [(i, b) for i, b in enumerate(model.blocks) if not isinstance(b, nn.Identity)]
    for index, block in blocks:
        for name in hints.column_linears:
            groups = fused.get(name, 1)
            _order_rows(block.get_submodule(name), groups, mesh.size())
            prefix = f"{hints.blocks[0]}.{index}.{name}"
            divisions[f"{prefix}.weight"] = divisions[f"{prefix}.bias"] = Division(0, groups)
        for name in hints.row_linears:
            divisions[f"{hints.blocks[0]}.{index}.{name}.weight"] = Division(1)
        parallelize_module(block, mesh, _block_plan(block, hints, sequence))
    if sequence and blocks:
        _cut_tokens(blocks[0][1], blocks[-1][1], mesh)
        model.divides_tokens = True
    if vocabulary and isinstance(model, Decoder):
        divisions |= _divide_vocabulary(model, mesh)
    return divisions


def divide_tables(model: nn.Module, hints: ParallelHints, mesh: DeviceMesh) -> dict[str, Division]:
    """Divide the rows of embeddings between the ranks of `mesh`, all of which have all inputs.

    A rank looks up the ids whose rows it has; the vectors are the sum over ranks.

    Raises:
        ConfigError: a model of tables has none, or one with too few rows for some rank to have any.
    """
    if isinstance(model, TableModel) and not hints.row_tables:
        raise ConfigError(
            f"tp={mesh.size()}, and {type(model).__name__} has no table of a fixed size to divide",
            fix="set tp=1",
        )
    for name in hints.row_tables:
        table = model.get_submodule(name)
        num_rows = len(table.weight)  # pyright: ignore[reportArgumentType]
        per_rank = -(-num_rows // mesh.size())
        if num_rows <= (mesh.size() - 1) * per_rank:
            raise ConfigError(
                f"tp={mesh.size()} ranks for the {num_rows} rows of {name}: with {per_rank} each"
                " the last rank has none",
                fix="set tp=1, or a tp that leaves rows for every rank",
            )
        _divide_rows(table, mesh)
    return {f"{name}.weight": Division(0) for name in hints.row_tables}


def _divide_rows(embedding: nn.Module, mesh: DeviceMesh) -> None:
    parallelize_module(embedding, mesh, RowwiseParallel(input_layouts=Replicate()))
    embedding.register_forward_hook(_wait)


def _block_plan(block: nn.Module, hints: ParallelHints, sequence: bool) -> dict[str, ParallelStyle]:
    tokens = Shard(1) if sequence else Replicate()
    plan: dict[str, ParallelStyle] = {}
    owners = Counter(name.rpartition(".")[0] for name in hints.column_linears)
    for name in hints.column_linears:
        owner = name.rpartition(".")[0]
        if owner and owners[owner] > 1:
            # they read the same: it is gathered once, and its gradient summed once
            plan[owner] = PrepareModuleInput(
                input_layouts=(tokens,), desired_input_layouts=(Replicate(),)
            )
            plan[name] = ColwiseParallel()
        else:
            plan[name] = ColwiseParallel(input_layouts=tokens)
    for name in hints.row_linears:
        plan[name] = RowwiseParallel(output_layouts=tokens)
    divided = list(hints.head_norms)  # of (B, H, T, E) the heads, where tokens are of (B, T, D)
    if sequence:
        norms = nn.LayerNorm | nn.RMSNorm
        divided += [name for name, module in block.named_modules() if isinstance(module, norms)]
    return plan | {name: SequenceParallel(use_local_output=True) for name in divided}


def _cut_tokens(first: nn.Module, last: nn.Module, mesh: DeviceMesh) -> None:
    """Give the first block here its part of the tokens, and what follows the last one all."""
    first.register_forward_pre_hook(_Scatter(mesh), with_kwargs=True)
    last.register_forward_hook(_Gather(mesh))


class _Scatter:
    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        whole = DTensor.from_local(args[0], self._mesh, (Replicate(),), run_check=False)
        part = whole.redistribute(placements=(Shard(1),)).to_local()
        return (part, *args[1:]), kwargs


class _Gather:
    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        parts = DTensor.from_local(output, self._mesh, (Shard(1),), run_check=False)
        return parts.redistribute(placements=(Replicate(),)).to_local()


def _divide_vocabulary(model: Decoder, mesh: DeviceMesh) -> dict[str, Division]:
    """Divide token embedding and head, which may be one weight, by tokens of the vocabulary."""
    is_tied = (
        model.head is not None
        and model.tok_embed is not None
        and model.head.weight is model.tok_embed.weight
    )
    divisions = {}
    if model.tok_embed is not None:
        _divide_rows(model.tok_embed, mesh)
        divisions["tok_embed.weight"] = Division(0)
    if model.head is not None and isinstance(model.trim, TrimVocabulary):
        style = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
        parallelize_module(model.head, mesh, style)
        num_rows = model.head.weight.shape[0]
        model.trim = MaskVocabulary(model.trim.num_classes, num_rows, mesh)
        divisions["head.weight"] = Division(0)
    if is_tied and model.head is not None and model.tok_embed is not None:
        model.head.weight = model.tok_embed.weight
    return divisions


def _wait(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """Return the sum over ranks, and no promise of it.

    A promise is a tensor of a class of its own, which any operation but a view waits for. Given to
    a compiled block as it is, no gradient comes back to it (torch 2.14).
    """
    return output.clone()


class MaskVocabulary(nn.Module):
    """Makes logits that pad a vocabulary impossible, where they are divided between ranks.

    Args:
        num_classes: tokens of the vocabulary.
        num_rows: with padding.
        mesh: the axis `tp`.
    """

    def __init__(self, num_classes: int, num_rows: int, mesh: DeviceMesh) -> None:
        super().__init__()
        self.num_classes = num_classes
        pad = torch.zeros(num_rows)
        pad[num_classes:] = -torch.inf
        self._pad = distribute_tensor(pad, mesh, (Shard(0),)) if num_rows > num_classes else None

    def forward(self, logits: DTensor) -> DTensor:
        """Return the logits (B, T, V), those of the padding at minus infinity."""
        if self._pad is None:
            return logits
        return logits + self._pad.to(logits.dtype)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def _order_rows(linear: nn.Module, groups: int, degree: int) -> None:
    """Put the rows of fused groups so that those of a rank are neighbours."""
    if groups == 1:
        return
    for parameter in linear.parameters(recurse=False):
        order = rank_rows(parameter.shape[0], groups, degree)
        parameter.copy_(parameter[order.to(parameter.device)])


def rank_rows(num_rows: int, groups: int, degree: int) -> Tensor:
    """Return the rows, as numbers in the model, in the order in which ranks hold them."""
    if groups == 1:  # any number of rows: the last rank may have fewer
        return torch.arange(num_rows)
    rows = torch.arange(num_rows).view(groups, degree, -1)
    return rows.transpose(0, 1).flatten()


# -- dropout ---------------------------------------------------------------------------------


def divide_randomness(
    model: BlockModel, hints: ParallelHints, rank: int, *, sequence: bool
) -> None:
    """Let ranks of `tp` drop independently what they hold different parts of, and only that.

    Between the blocks every rank holds the same activations, and draws the same numbers. Inside a
    module that ends in a row linear (and in all of a block whose tokens are divided) a rank draws
    from a stream of its own.
    """
    if not drops(model):
        return
    for block in model.blocks:
        if isinstance(block, nn.Identity):
            continue
        owners = {name.rpartition(".")[0] for name in hints.row_linears}
        regions = [block] if sequence else [block.get_submodule(each) for each in owners if each]
        for region in regions:
            region.forward = _OwnStream(region.forward, rank)  # pyright: ignore[reportAttributeAccessIssue]


def drops(model: nn.Module) -> bool:
    """Return whether a model has dropout, or the like, that is not switched off."""
    return any(
        float(getattr(module, name, 0.0)) > 0
        for module in model.modules()
        for name in ("p", "dropout", "probability")
        if isinstance(getattr(module, name, None), float)
    )


class _OwnStream:
    """A forward whose random numbers are another stream's, begun from the one around it."""

    def __init__(self, forward: Any, rank: int) -> None:
        self._forward = forward
        self._rank = rank

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        # one number of the common stream begins the own one: all ranks go on in step
        begin = int(torch.randint(2**62, ()))
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed((begin + self._rank * 0x1F3D_5B79_A8C6_E425) % 2**63)
            return self._forward(*args, **kwargs)


def explain_mixture(model: nn.Module, error: RuntimeError) -> ConfigError | None:
    """Return torch's "mixed Tensor and DTensor" with the modules that no plan covers."""
    if "mixed torch.Tensor and DTensor" not in str(error):
        return None
    divided, whole = [], []
    for name, parameter in model.named_parameters():
        (divided if isinstance(parameter, DTensor) else whole).append(name)
    return ConfigError(
        "a divided weight meets a whole one in one operation: no plan covers"
        f" {', '.join(whole[:4])}{' ...' if len(whole) > 4 else ''}"
        f" beside {', '.join(divided[:2])}",
        fix="name the linears of each block in ParallelHints.column_linears or row_linears, or set"
        " tp=1",
        see="docs/errors.md#mixed-tensors",
    )
