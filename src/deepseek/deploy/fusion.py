"""Operators that become one before a model is deployed.

```
convolution or linear, then batch norm    one operator: the norm is folded into the weights
attention written out                     the kernel of torch (SDPA): by the switch of a library, or
                                          in the place of what a module computes
activation written out                    the kernel of torch: x * sigmoid(x) becomes SiLU
```
Pairs are found in the graph that `torch.export` records, so that a convolution whose output is
also read elsewhere, or whose weights are used twice, is left as it is. What is computed stays the
same up to rounding; a fused model is compared with the original before it is returned.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from deepseek.deploy.samples import random_inputs
from deepseek.deploy.written_activations import fuse_written_activations
from deepseek.deploy.written_attention import fuse_written_attention
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.folding import NORMS, rest_of
from deepseek.models.full_float32 import full_float32

TOLERANCE = 1e-3
"""Largest difference of an output that folding may make, as a share of the largest output."""
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")


@dataclass(frozen=True)
class Fusion:
    """A fused model, and what was done.

    Attributes:
        model: a copy with fewer operators, in evaluation.
        folded: (convolution or linear, norm) by name, for each norm that is gone.
        attentions: modules whose attention is fused now.
        activations: (module that wrote an activation out, kernel in its place).
        kept: (norm, or module that writes attention out, why it is still there).
        difference: largest absolute difference of an output to the original's.
    """

    model: nn.Module
    folded: tuple[tuple[str, str], ...]
    attentions: tuple[str, ...]
    activations: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]
    difference: float

    def describe(self) -> str:
        """Return it in words."""
        parts = [
            f"{len(self.folded)} norms folded", f"{len(self.attentions)} attentions fused",
            f"{len(self.activations)} activations fused",
        ]  # fmt: skip
        if self.kept:
            parts.append("kept: " + ", ".join(f"{name} ({why})" for name, why in self.kept))
        return f"{'; '.join(parts)}; outputs differ by {self.difference:.1e} at most"


def fuse(model: nn.Module, inputs: Tensor | None = None) -> Fusion:
    """Return a copy of a model with fewer operators.

    Args:
        model: any module that `torch.export` can record, or a `ModelEngine`.
        inputs: two samples or more, as the module takes them; random ones of the spec of an
            engine that has one.

    Raises:
        ConfigError: the model cannot be recorded, or nothing is known of its inputs.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> fuse(model, torch.randn(2, 3, 16, 16)).folded
        (('0', '1'),)
    """
    if inputs is None:
        inputs = sample_inputs(model)
    module = model.module if isinstance(model, ModelEngine) else model
    fused = copy.deepcopy(module).eval()
    switched = _switch_attention(fused)
    written, why_kept = fuse_written_attention(fused, inputs)
    activations = fuse_written_activations(fused, inputs)
    folded, kept = _fold(fused, inputs)
    with evaluating(module):
        difference = largest_difference(module, fused, inputs)
    return Fusion(
        fused, folded, (*switched, *written), activations, (*why_kept, *kept), difference
    )  # fmt: skip


def fuse_engine(engine: ModelEngine, inputs: Tensor | None = None) -> tuple[ModelEngine, Fusion]:
    """Return a copy of an engine with fewer operators, which can be saved, and what was done.

    Args:
        engine: with its head.
        inputs: as in `fuse`.

    Raises:
        ConfigError: as in `fuse`.
    """
    found = fuse(engine, inputs)
    fused = copy.deepcopy(engine)
    fused.module = found.model
    if found.folded:
        change = {"kind": "folded", "pairs": [list(pair) for pair in found.folded]}
        fused.changes = (*engine.changes, change)
    return fused.eval(), found


def sample_inputs(model: nn.Module, count: int = 2) -> Tensor:
    """Return random samples (count, ...) of what an engine takes, prepared for its module.

    Raises:
        ConfigError: nothing is known of its inputs.
    """
    if not isinstance(model, ModelEngine):
        raise ConfigError(
            f"nothing is known of the inputs of this {type(model).__name__}",
            fix="give inputs=, a tensor of two samples or more",
        )
    return model.prepare(random_inputs(model, count).to(model.device))


def largest_difference(one: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    """Return the largest absolute difference between outputs, for all inputs and for the first.

    Raises:
        ConfigError: they differ by more than rounding.
    """
    worst = 0.0
    with torch.inference_mode(), full_float32():
        for batch in (inputs, inputs[:1]):
            expected, found = first_tensor(one(batch)), first_tensor(other(batch))
            difference = float((expected - found).abs().max())
            scale = max(1.0, float(expected.abs().max()))
            if not difference <= TOLERANCE * scale:
                raise ConfigError(
                    f"the fused model differs by {difference:.2e} from the original, whose largest"
                    f" output is {scale:.2e}",
                    fix="leave fusion out for this model",
                )
            worst = max(worst, difference)
    return worst


def first_tensor(outputs: object) -> Tensor:
    """Return the outputs of a model, (B, ...): those of several tasks as one, or the first."""
    if isinstance(outputs, Tensor):
        return outputs
    values = list(outputs.values() if isinstance(outputs, dict) else outputs)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if type(outputs) is dict and all(isinstance(value, Tensor) for value in values):
        return torch.cat([value.flatten(1) for value in values], 1)
    return next(value for value in values if isinstance(value, Tensor))


def _switch_attention(module: nn.Module) -> tuple[str, ...]:
    """Switch to torch's fused attention where a library has a switch, and it is off."""
    switched = []
    for name, part in module.named_modules():
        if getattr(part, "fused_attn", None) is False:  # timm
            setattr(part, "fused_attn", True)  # noqa: B010 (no attribute of an nn.Module)
            switched.append(name)
    config = getattr(module, "config", None)
    set_implementation = getattr(module, "set_attn_implementation", None)
    if set_implementation and getattr(config, "_attn_implementation", "") == "eager":
        set_implementation("sdpa")  # transformers
        switched.append(type(module).__name__)
    return tuple(switched)


def _fold(
    module: nn.Module, inputs: Tensor
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    norms = [name for name, part in module.named_modules() if isinstance(part, NORMS)]
    if not norms:
        return (), ()
    try:
        program = torch.export.export(module, (inputs,))
    except Exception as error:  # torch.export raises what it likes
        raise ConfigError(
            f"the model cannot be recorded: {str(error).splitlines()[0]}",
            fix="fusion needs a forward pass that torch.export takes",
        ) from error
    pairs = _find_pairs(program)
    folded, kept = [], []
    for name in norms:
        if name not in pairs:
            kept.append((name, "no convolution or linear alone before it"))
            continue
        reason = _fold_one(module, pairs[name], name)
        folded.append((pairs[name], name)) if reason is None else kept.append((name, reason))
    return tuple(folded), tuple(kept)


def _find_pairs(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Return norm -> the convolution or linear whose output nothing else reads, by name."""
    owners = program.graph_signature.inputs_to_parameters
    nodes = program.graph.nodes
    uses: dict[str, int] = {}
    for node in nodes:
        for each in node.all_input_nodes:
            if each.name in owners:
                uses[owners[each.name]] = uses.get(owners[each.name], 0) + 1
    pairs = {}
    for node in nodes:
        if _operator(node) != "batch_norm":
            continue
        before, weight = node.args[0], node.args[1]
        if not isinstance(before, torch.fx.Node) or len(before.users) != 1:
            continue
        if _operator(before) not in (*_CONVOLUTIONS, "linear"):
            continue
        owned = [
            owners[each.name]
            for each in (before.args[1], weight)
            if isinstance(each, torch.fx.Node) and each.name in owners
        ]
        if len(owned) == 2 and all(uses[name] == 1 for name in owned):
            first, norm = (name.rpartition(".")[0] for name in owned)
            pairs[norm] = first
    return pairs


def _operator(node: torch.fx.Node) -> str:
    """Return the name of what a node calls: `conv2d` for `aten::conv2d`."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return node.target._schema.name.rpartition("::")[2]


def _fold_one(module: nn.Module, first: str, name: str) -> str | None:
    """Fold a norm into the module before it; return why it cannot be."""
    product, norm = module.get_submodule(first), module.get_submodule(name)
    try:
        rest = rest_of(norm)
    except ValueError as error:
        return str(error)
    if not isinstance(norm, NORMS):
        return f"a {type(norm).__name__} is no norm"
    if isinstance(product, nn.Linear):
        merged = fuse_linear_bn_eval(product, norm)
    elif isinstance(product, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        merged = fuse_conv_bn_eval(product, norm)
    else:
        return f"{first} is a {type(product).__name__}"
    module.set_submodule(first, merged)
    module.set_submodule(name, rest)
    return None
