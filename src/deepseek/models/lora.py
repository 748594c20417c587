"""Low-rank adapters: a linear keeps its weight and learns a product of two thin matrices.

Paper: Hu et al. 2021 (LoRA), arXiv 2106.09685, section 4.1: `h = W x + (alpha / r) B A x`, B zero
at first, A random. Departures: every linear of the blocks has an adapter, not those of queries and
values alone; where queries, keys and values come from one linear they share A. A is drawn as
torch's linears are.

The change `lora` of a model file holds `layers`, a list of names, `rank`, `alpha` and `dropout`.

Shapes: I inputs, O outputs, R rank.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.depth import block_names, distances
from deepseek.models.dropout import Dropout
from deepseek.models.engine import ModelEngine

CHANGE = "lora"


class LoraLinear(nn.Module):
    """A linear whose weight stays, with an adapter that learns; the names of its weights stay.

    Args:
        layer: whose weights are taken, not copied.
        rank: R.
        alpha: the product of the adapter counts `alpha / rank`.
        dropout: probability, on the inputs of the adapter.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        for kept in (self.weight, self.bias):
            if kept is not None:
                kept.requires_grad_(False)
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.lora_a = nn.Parameter(torch.empty(rank, layer.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.scale = alpha / rank
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """Return the outputs of the linear and of its adapter, added up."""
        added = F.linear(F.linear(self.dropout(x), self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + self.scale * added

    def to_plain(self) -> nn.Linear:
        """Return a linear that computes the same."""
        with torch.device("meta"):
            plain = nn.Linear(self.weight.shape[1], self.weight.shape[0], self.bias is not None)
        with torch.no_grad():
            weight = self.weight + self.scale * (self.lora_b @ self.lora_a)
        plain.weight = nn.Parameter(weight)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach())
        return plain


def add_lora(
    engine: ModelEngine,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
) -> None:
    """Give linears adapters, in place: these learn, and what comes behind the blocks.

    Args:
        engine: a model with a head.
        rank: R, at least 1.
        alpha: what an adapter counts, times R; `2 * rank` by default.
        dropout: probability, on the inputs of adapters.
        targets: ends of the names of linears, such as `["attn.qkv", "fc1"]`; all linears of the
            blocks by default.

    Raises:
        ConfigError: the model has adapters, or no such linears.
    """
    if has_lora(engine):
        raise ConfigError("the model has adapters already", fix="merge them: merge_lora(engine)")
    module = engine.module
    layers = _find_linears(engine, targets)
    for name, away in distances(module, engine.hints, dict(module.named_parameters())).items():
        if away:
            module.get_parameter(name).requires_grad_(False)
    table = {
        "kind": CHANGE, "layers": layers, "rank": rank,
        "alpha": float(2 * rank if alpha is None else alpha), "dropout": dropout,
    }  # fmt: skip
    apply_lora(module, table)
    engine.changes = (*engine.changes, table)


def apply_lora(module: nn.Module, change: dict) -> None:
    """Replace linears by such with adapters, in place.

    Raises:
        ValueError: a layer is no linear.
    """
    for name in change["layers"]:
        layer = module.get_submodule(name)
        if type(layer) is not nn.Linear:
            raise ValueError(f"{name} is a {type(layer).__name__}, not a linear")
        adapted = LoraLinear(layer, change["rank"], change["alpha"], change["dropout"])
        module.set_submodule(name, adapted.train(layer.training))


def has_lora(engine: ModelEngine) -> bool:
    """Return whether a model has adapters."""
    return any(change.get("kind") == CHANGE for change in engine.changes)


def merge_lora(engine: ModelEngine) -> ModelEngine:
    """Return the model with its adapters added to its weights; itself where it has none."""
    if not has_lora(engine):
        return engine
    merged = copy.deepcopy(engine)
    for name, part in list(merged.module.named_modules()):
        if isinstance(part, LoraLinear):
            merged.module.set_submodule(name, part.to_plain().train(part.training))
    merged.changes = tuple(each for each in merged.changes if each.get("kind") != CHANGE)
    return merged.requires_grad_(True)


def _find_linears(engine: ModelEngine, targets: Sequence[str] | None) -> list[str]:
    linears = [name for name, part in engine.module.named_modules() if type(part) is nn.Linear]
    if targets is None:
        blocks = tuple(f"{name}." for name in block_names(engine.module, engine.hints))
        found = [name for name in linears if name.startswith(blocks)]
    else:
        ends = tuple(targets)
        found = [name for name in linears if f".{name}".endswith(tuple(f".{e}" for e in ends))]
    if not found:
        wanted = "its blocks" if targets is None else f"the names {', '.join(targets)}"
        raise ConfigError(
            f"{engine.architecture!r} has no linears of {wanted} that could have adapters",
            fix=f"its linears: {', '.join(linears[:6]) or 'none'}",
        )
    return found
