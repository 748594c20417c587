"""`prune`: a model that is really smaller, or one with two zeros in every four weights.

What is cut is told as data (`models.cut`), so that the result is saved, loaded, trained, exported
and quantised as any model. Its accuracy comes back by training, with or without the original as a
teacher (`deepseek.trainer.Distillation`).
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from deepseek.deploy.fusion import sample_inputs
from deepseek.deploy.pruning.cost import Cost, costs
from deepseek.deploy.pruning.depth import measure_influence
from deepseek.deploy.pruning.groups import find_groups
from deepseek.deploy.pruning.importance import Data, rank_units
from deepseek.deploy.pruning.masks import PRUNABLE
from deepseek.deploy.pruning.selection import Budget, choose_blocks, choose_units
from deepseek.deploy.pruning.semi_structured import PATTERN, zero_two_of_four
from deepseek.deploy.pruning.units import cut_tensors
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.cut import KIND, keep_blocks, replace_tensors

WHAT = ("width", "depth")
NUM_SAMPLES = 2


class CutLayer(NamedTuple):
    """What was cut of what a layer makes.

    Attributes:
        name: of the layer; others that make or read the same lost as much.
        kind: "channels", "features" or "heads".
        before, after: how many.
    """

    name: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class Pruning:
    """A pruned model, and what it cost before and costs now.

    Attributes:
        model: a new engine; the original is as it was.
        before, after: what a forward pass costs.
        cut: layers that lost some of what they make.
        dropped: names of blocks that are gone.
        zeroed: linears and convolutions of whose weights two in four are zero.
        kept: (name, why nothing of it could be cut).
    """

    model: ModelEngine
    before: Cost
    after: Cost
    cut: tuple[CutLayer, ...] = ()
    dropped: tuple[str, ...] = ()
    zeroed: tuple[str, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()

    def describe(self) -> str:
        """Return it in words, a line for each number."""
        before, after = self.before, self.after
        lines = []
        for kind in dict.fromkeys(layer.kind for layer in self.cut):
            layers = [layer for layer in self.cut if layer.kind == kind]
            num_before = sum(layer.before for layer in layers)
            num_gone = num_before - sum(layer.after for layer in layers)
            lines.append(f"{num_gone:,} of {num_before:,} {kind} of {len(layers)} layers cut")
        if self.dropped:
            lines.append(f"{len(self.dropped)} blocks dropped: {', '.join(self.dropped)}")
        if self.zeroed:
            lines.append(f"2 of 4 weights zero in {len(self.zeroed)} layers")
        for name, old, new, scale, unit in (
            ("FLOPs", before.flops, after.flops, 1e6, "M"),
            ("parameters", before.num_parameters, after.num_parameters, 1e6, "M"),
            ("bytes", before.num_bytes, after.num_bytes, 1e6, "MB"),
        ):
            lines.append(
                f"{name}  {old / scale:.2f} {unit} -> {new / scale:.2f} {unit} ({new / old:.1%})"
            )
        for size, old in before.latencies_ms.items():
            new = after.latencies_ms[size]
            lines.append(f"batch {size}  {old:.2f} ms -> {new:.2f} ms ({old / new:.2f}x as fast)")
        if self.zeroed:
            lines.append("zeros in a pattern make nothing faster but on GPUs that know it")
        return "\n".join(lines)


def prune(
    model: nn.Module,
    *,
    flops: float | None = None,
    parameters: float | None = None,
    pattern: str | None = None,
    what: str = "width",
    criterion: str = "magnitude",
    data: Data | None = None,
    inputs: Tensor | None = None,
    skip: Collection[str] = (),
    min_kept: float = 0.1,
    latency: bool = True,
) -> Pruning:
    """Return a smaller model. One of `flops`, `parameters` and `pattern` says by how much.

    Args:
        model: a `ModelEngine`, one of our models, or any module whose computation can be traced.
        flops: share of the FLOPs of a forward pass that is to be left, in (0, 1).
        parameters: share of the parameters that is to be left, in (0, 1).
        pattern: "2:4": of every four weights the two smallest become zero; nothing is cut.
        what: "width" cuts channels, heads and hidden features; "depth" leaves whole blocks out.
        criterion: which units go first: "magnitude", "taylor", "bn_scale" or "random".
        data: labelled samples, for "taylor" and "depth".
        inputs: (B, ...), two samples or more, as the module takes them; random ones of the spec of
            an engine that has one.
        skip: names of modules, or beginnings of them, that are left as they are.
        min_kept: share of the units of a layer that stays in any case; at least one unit does.
        latency: measure before and after, in batches of 1 and 32, on this machine.

    Raises:
        ConfigError: a share is not between 0 and 1 or cannot be reached, nothing can be cut, or
            what the criterion needs is missing.
        MissingExtraError: torch-pruning, for models that are not our transformers.

    Example:
        ```python
        pruned = prune(engine, flops=0.5)
        print(pruned.describe())
        Trainer(pruned.model, data, epochs=10, task=Distillation(engine)).fit()
        ```
    """
    engine = _checked(model)
    budget = _budget(flops, parameters, pattern, what)
    given = sample_inputs(engine, NUM_SAMPLES) if inputs is None else inputs
    smaller = copy.deepcopy(engine)
    smaller._head_is_lent = False  # the table of the cut names the head's size
    smaller._is_compiled = False
    known: dict = {}
    if budget is None:
        known["zeroed"] = zero_two_of_four(smaller, skip)
    elif what == "depth":
        known["dropped"] = _drop_blocks(smaller, budget, data, given)
    else:
        known["cut"], known["kept"] = _cut_units(
            smaller, budget, given, criterion, data, skip, min_kept
        )
    before, after = costs([engine.module, smaller.module], given, times=latency)
    return Pruning(smaller, before, after, **known)


def _checked(model: nn.Module) -> ModelEngine:
    engine = ModelEngine.wrap(model)
    if any(change.get("kind") != KIND for change in engine.changes):
        raise ConfigError(
            f"the model was {engine.changes[-1]['kind']} before", fix="prune it first, then do that"
        )
    if engine._prepares_inside:
        raise ConfigError(
            "a converted model cannot be pruned", fix="prune the model it was made of"
        )
    if not any(isinstance(part, PRUNABLE) for part in engine.module.modules()):
        raise ConfigError(
            f"{engine.architecture} has neither linears nor convolutions to prune",
            fix="give another model",
        )
    return engine


def _budget(
    flops: float | None, parameters: float | None, pattern: str | None, what: str
) -> Budget | None:
    given = {"flops": flops, "parameters": parameters, "pattern": pattern}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise ConfigError(
            f"{' and '.join(chosen) or 'nothing'} says how much is to be left",
            fix='give one of flops=0.5, parameters=0.5 and pattern="2:4"',
        )
    if what not in WHAT:
        raise ConfigError(f"what={what!r} is not known", fix='use what="width" or "depth"')
    if pattern is not None:
        if pattern != PATTERN:
            raise ConfigError(f"pattern={pattern!r} is not known", fix=f'use pattern="{PATTERN}"')
        return None
    share = flops if flops is not None else parameters
    return Budget(chosen[0], 0.0 if share is None else share)


def _cut_units(
    engine: ModelEngine,
    budget: Budget,
    inputs: Tensor,
    criterion: str,
    data: Data | None,
    skip: Collection[str],
    min_kept: float,
) -> tuple[tuple[CutLayer, ...], tuple[tuple[str, str], ...]]:
    groups, why_kept = find_groups(engine, inputs, skip)
    if not groups:
        raise ConfigError(
            "nothing of this model can be cut: "
            + "; ".join(f"{name}: {why}" for name, why in why_kept[:5]),
            fix='drop whole blocks (what="depth"), or zero weights (pattern="2:4")',
        )
    importance = rank_units(engine, groups, criterion, data)
    kept = choose_units(engine.module, groups, importance, budget, inputs, min_kept)
    tensors = cut_tensors(engine.module, groups, kept)
    replace_tensors(engine.module, tensors)
    _note(engine, shapes={name: list(tensor.shape) for name, tensor in tensors.items()})
    layers = (CutLayer(g.name, g.kind, g.num_units, int(kept[g.name].sum())) for g in groups)
    return tuple(each for each in layers if each.after < each.before), tuple(why_kept)


def _drop_blocks(
    engine: ModelEngine, budget: Budget, data: Data | None, inputs: Tensor
) -> tuple[str, ...]:
    influence = measure_influence(engine, data)
    sizes = {path: len(list(engine.module.get_submodule(path).children())) for path, _ in influence}
    try:
        kept = choose_blocks(engine.module, influence, budget, inputs)
    except (RuntimeError, IndexError, TypeError) as error:
        raise ConfigError(
            f"the model does not run without some of its blocks: {str(error).splitlines()[0]}",
            fix='cut channels instead: what="width"',
        ) from error
    keep_blocks(engine.module, kept)
    _note(engine, blocks=kept)
    return tuple(
        f"{path}.{i}"
        for path, indices in kept.items()
        for i in range(sizes[path])
        if i not in indices
    )


def _note(engine: ModelEngine, *, blocks: dict | None = None, shapes: dict | None = None) -> None:
    table = {"kind": KIND, "blocks": blocks or {}, "shapes": shapes or {}}
    engine.changes = (*engine.changes, table)
