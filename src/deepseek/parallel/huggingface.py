"""Hugging Face models under tensor and pipeline parallelism, as their own plans say.

A model of transformers names in `tp_plan` how linears are divided, and in `pp_plan` what comes one
after the other. It may be inside a module of the user's that returns logits. The plans are carried
out by this library: no distributed code of transformers runs.

A stage of a pipeline runs the user's forward with the tokens of its micro-batch, so that masks,
positions and whatever is done with the logits are the model's own:

```
first     embedding, layers 0 .. k-1; layer k stands for the next stage: the forward is left there
middle    no embedding; its first layer takes what the stage before has sent
last      likewise, and everything after the layers
```
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from deepseek.models import ModelEngine
from deepseek.models.pretrained import find_transformers_model
from deepseek.parallel.stages import Stage, shallow_copy, tied_names
from deepseek.parallel.tensor import Division


@dataclass(frozen=True)
class Style:
    """What an entry of a `tp_plan` means.

    Attributes:
        kind: of module that it is for.
        make: returns torch's style of the same meaning.
        dim: of the weight that is cut; `None`: every rank has all of it.
        is_closed: whether what goes in and comes out is whole, so that a weight which cannot be cut
            into equal parts may as well be whole.
    """

    kind: type[nn.Module]
    make: Callable[[], ParallelStyle]
    dim: int | None = None
    is_closed: bool = False


_GATHERED = Style(nn.Linear, partial(ColwiseParallel, output_layouts=Replicate()), 0, True)
_SPLIT = Style(nn.Linear, partial(RowwiseParallel, input_layouts=Replicate()), 1, True)
STYLES = {
    "colwise": Style(nn.Linear, ColwiseParallel, 0),
    "rowwise": Style(nn.Linear, RowwiseParallel, 1),
    "colwise_gather_output": _GATHERED,
    "colwise_rep": _GATHERED,
    "rowwise_split_input": _SPLIT,
    "rowwise_rep": _SPLIT,
    "embedding_rowwise": Style(
        nn.Embedding, partial(RowwiseParallel, input_layouts=Replicate()), 0, True
    ),
    # a norm of heads: it has those of a rank, and the gradients of its weight are to be added up
    "replicated_with_grad_allreduce": Style(
        nn.Module, partial(SequenceParallel, use_local_output=True)
    ),
    "replicate": Style(nn.Module, ParallelStyle),
}


@dataclass(frozen=True)
class PretrainedFacts:
    """What a plan asks of a Hugging Face model.

    Attributes:
        heads: that are divided, of queries; 0: none are.
        key_value_heads: that are divided, of keys and values.
        widths: features of each linear that is divided, by its entry in the plan.
        num_blocks: layers that a pipeline may cut between.
        no_tp: why it cannot be divided by `tp`; empty if it can.
        no_pp: why it cannot be cut into stages.
    """

    heads: int
    key_value_heads: int
    widths: tuple[tuple[str, int], ...]
    num_blocks: int
    no_tp: str
    no_pp: str


def pretrained_facts(module: nn.Module) -> PretrainedFacts | None:
    """Return what a plan asks of the Hugging Face model in `module`; `None` without one."""
    found = find_transformers_model(module)
    if found is None:
        return None
    prefix, model = found
    styles = _styles(model)
    widths: dict[str, int] = {}
    for name, style in styles.items():
        each = model.get_submodule(name)
        if isinstance(each, nn.Linear) and "*" in _entry(name) and style in STYLES:
            widths[_entry(name)] = each.weight.shape[STYLES[style].dim or 0]
    divided = [name for name, style in styles.items() if style == "colwise"]
    in_attention = [name for name in divided if "att" in name.split(".")[-2]]
    has_keys = any(name.endswith((".k_proj", ".v_proj")) for name in in_attention)
    config = model.config.get_text_config()
    no_tp, no_pp = _tensor_problem(model), _pipeline_problem(module, prefix, model)
    return PretrainedFacts(
        heads=_count(getattr(config, "num_attention_heads", 0)) if in_attention else 0,
        key_value_heads=_count(getattr(config, "num_key_value_heads", 0)) if has_keys else 0,
        widths=tuple(widths.items()),
        num_blocks=0 if no_pp else len(module.get_submodule(layer_lists(module)[0])),  # pyright: ignore[reportArgumentType]
        no_tp=no_tp,
        no_pp=no_pp,
    )


def _count(number: int | Sequence[int] | None) -> int:
    """Return a number of heads that is given once, or for every layer."""
    return math.gcd(*number) if isinstance(number, Sequence) else number or 0


def _entry(name: str) -> str:
    """Return a module's name as plans write it, `layers.*.mlp`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _styles(model: Any) -> dict[str, str]:
    """Return the style of every module that has one."""
    plan = model.tp_plan or {}
    return {name: plan[_entry(name)] for name, _ in model.named_modules() if _entry(name) in plan}


# -- what can be done ------------------------------------------------------------------------


def _tensor_problem(model: Any) -> str:
    return next(_tensor_problems(model), "")


def _tensor_problems(model: Any) -> Iterator[str]:
    name, plan = type(model).__name__, model.tp_plan
    if not plan:
        yield f"{name} has no tp plan"
        return
    styles = _styles(model)
    bare = sorted({_entry(key) for key, _ in model.named_parameters()} & plan.keys())
    for entry in (*map(_entry, styles), *bare):
        if plan[entry] not in STYLES:
            yield f"the tp plan of {name} has {entry} in the unsupported style {plan[entry]}"
    for entry in bare:
        yield f"the tp plan of {name} divides {entry}, which is no module"
    for each, style in styles.items():
        module = model.get_submodule(each)
        if style in STYLES and not isinstance(module, STYLES[style].kind):
            yield (
                f"the tp plan of {name} has {_entry(each)} in the style {style}, and it is a"
                f" {type(module).__name__}"
            )
    for missing, beside in _missing(model, styles):
        yield f"the tp plan of {name} has no entry for {missing}, beside {beside}, which it divides"
    if not any("*" in _entry(each) and style != "replicate" for each, style in styles.items()):
        yield f"the tp plan of {name} divides nothing in a layer"


def _missing(model: Any, styles: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Return what is computed with a part of the features, and has no entry in the plan.

    Whole, it would fail by its shape, or (a norm) have the gradient of a part only.
    """
    for name, style in styles.items():
        if style not in ("colwise", "rowwise"):
            continue
        parent = name.rpartition(".")[0]
        module = model.get_submodule(parent)
        for child, each in module.named_children():
            full = f"{parent}.{child}"
            if full not in styles and next(each.parameters(), None) is not None:
                yield f"{_entry(full)} ({type(each).__name__})", _entry(name)
        for key, _ in module.named_parameters(recurse=False):
            yield f"{_entry(parent)}.{key}", _entry(name)
    for one, other in tied_names(model):
        names = [each.rpartition(".")[0] for each in (one, other)]
        whole = [each for each in names if each not in styles]
        if len(whole) == 1:
            divided = next(each for each in names if each in styles)
            yield f"{_entry(whole[0])} (of the same weight)", _entry(divided)


def _pipeline_problem(module: nn.Module, prefix: str, model: Any) -> str:
    name = type(model).__name__
    if not model.pp_plan:
        return f"{name} has no pp plan"
    lists = layer_lists(module)
    if len(lists) != 1:
        return f"the pp plan of {name} names {len(lists)} lists of layers, not one"
    before = _before(prefix, model)
    planned = [_join(prefix, entry) for entry in model.pp_plan]
    inner = next((key for key, each in module.named_modules() if each is model.base_model), "")
    for key, _ in module.named_parameters():
        is_planned = any(key.startswith(f"{entry}.") for entry in planned)
        if key.startswith(_join(inner, "")) and not is_planned:
            return f"the pp plan of {name} has no entry for {_entry(key)}"
    for one, other in tied_names(module):
        if not _is_in(one, before) or _is_in(other, (*before, *lists)):
            return f"{_entry(one)} and {_entry(other)} of {name} are one weight, in two stages"
    return ""


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _is_in(name: str, owners: Sequence[str]) -> bool:
    return any(name == owner or name.startswith(f"{owner}.") for owner in owners)


def layer_lists(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the lists of layers in the `pp_plan` of a Hugging Face model."""
    found = find_transformers_model(module)
    if found is None:
        return ()
    prefix, model = found
    parts = dict(model.named_modules())
    plan = model.pp_plan or {}
    return tuple(_join(prefix, e) for e in plan if isinstance(parts.get(e), nn.ModuleList))


def _before(prefix: str, model: Any) -> tuple[str, ...]:
    """Return what the first stage has before the layers: it takes tokens, or their embeddings."""
    return tuple(
        _join(prefix, entry)
        for entry, (takes, _) in model.pp_plan.items()
        if {"input_ids", "inputs_embeds"} & set(takes)
    )


# -- tensor parallelism ----------------------------------------------------------------------


def divide_pretrained(models: Sequence[nn.Module], mesh: DeviceMesh) -> dict[str, Division]:
    """Divide Hugging Face models between the ranks of `mesh` by their `tp_plan`.

    Args:
        models: one, or its stages on this rank; changed in place.
        mesh: the axis `tp`.

    Returns:
        How each weight is divided that is, by its name.
    """
    divisions: dict[str, Division] = {}
    first: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # of a weight: before, and divided
    for outer in models:
        found = find_transformers_model(outer)
        if found is None:
            continue
        prefix, model = found
        for name, key in _styles(model).items():
            module, style = model.get_submodule(name), STYLES[key]
            held, buffers = dict(module.named_parameters(recurse=False)), module._buffers.copy()
            if not held or not _divides(module, style, mesh.size()) or key == "replicate":
                continue
            parallelize_module(module, mesh, style.make())
            module._buffers.update(buffers)  # DTensors by now; a scale is a scalar and may stay
            for which, weight in held.items():
                divided = first.setdefault(id(weight), (weight, module._parameters[which]))[1]  # pyright: ignore[reportArgumentType]
                module._parameters[which] = divided
                if style.dim is not None and (which == "weight" or style.dim == 0):
                    divisions[f"{_join(prefix, name)}.{which}"] = Division(style.dim)
    return divisions


def _divides(module: nn.Module, style: Style, degree: int) -> bool:
    weight = module._parameters.get("weight")
    if weight is None or style.dim is None:
        return True
    return not style.is_closed or weight.shape[style.dim] % degree == 0


# -- pipeline parallelism --------------------------------------------------------------------


class _Left(BaseException):
    """The forward is over for this stage. Not an `Exception`: no model is to catch it.

    Attributes:
        hidden: what the next layer would take.
    """

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _Stream:
    """What the stage before has sent, while a forward is under way."""

    entered: Tensor | None = None

    def enter(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Give the first layer of a stage what was sent; a forward pre-hook."""
        if args:
            return (self.entered, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self.entered}

    def blank(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return what stands for something of an earlier stage: not a number, if it is used."""
        sent = self.entered
        if sent is None:
            raise RuntimeError("a stage of a pipeline runs only on what it was sent")
        return sent.detach().new_full((), torch.nan).expand(sent.shape)


def _leave(*args: Any, **kwargs: Any) -> Tensor:
    raise _Left(args[0] if args else kwargs["hidden_states"])


class PretrainedStage(Stage):
    """Part of a module that holds a Hugging Face model.

    Args:
        engine: prepares inputs.
        model: the module without what is not of the stage.
        blocks: numbers of its layers.
        is_first: whether it takes the inputs.
        is_last: whether it gives the logits.
        stream: that the stand-ins of the stage share.
    """

    def __init__(
        self,
        engine: ModelEngine,
        model: nn.Module,
        blocks: range,
        is_first: bool,
        is_last: bool,
        stream: _Stream,
    ) -> None:
        super().__init__(engine, model, blocks, is_first, is_last)
        self._stream = stream
        self._list = layer_lists(model)[0]

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers of the stage, in order."""
        row = self.model.get_submodule(self._list)
        return [row[index] for index in self.block_ids]  # pyright: ignore[reportIndexIssue]

    def forward(self, x: Tensor, **beside: Tensor) -> Tensor:
        """Run the stage on one micro-batch, the tokens of which are beside."""
        self._stream.entered = x
        try:
            x = self.model(self._engine[0].prepare(beside["tokens"]))
        except _Left as left:
            x = left.hidden
        finally:
            self._stream.entered = None
        return x.contiguous()  # it is sent as it lies


def cut_pretrained(
    engine: ModelEngine, blocks: range, *, is_first: bool, is_last: bool
) -> PretrainedStage:
    """Return a stage of the model of `engine`, which stays as it is; weights are shared with it."""
    found = find_transformers_model(engine.module)
    if found is None:
        raise RuntimeError("there is no Hugging Face model")
    row, before = layer_lists(engine.module)[0], _before(*found)
    stream, model = _Stream(), shallow_copy(engine.module)
    path = row.split(".")
    owner = model
    for depth, key in enumerate(path):
        for name, module in owner._modules.items():
            if name == key or module is None or next(module.parameters(), None) is None:
                continue
            place = ".".join((*path[:depth], name))
            if any(_is_in(each, [place]) for each in before):
                if not is_first:
                    owner._modules[name] = _stand_in(module, stream.blank)
            elif not is_last:
                owner._modules[name] = None
        if not is_last:
            owner._parameters = dict.fromkeys(owner._parameters)
        inner = owner._modules[key] = shallow_copy(owner.get_submodule(key))
        owner = inner
    for index in range(len(owner)):  # pyright: ignore[reportArgumentType]
        if index not in blocks:
            act = stream.blank if index < blocks.start else _leave
            owner._modules[str(index)] = _stand_in(owner.get_submodule(str(index)), act)
    if not is_first:
        first = owner.get_submodule(str(blocks.start))
        first.register_forward_pre_hook(stream.enter, with_kwargs=True)
    return PretrainedStage(engine, model, blocks, is_first, is_last, stream)


def _stand_in(module: nn.Module, forward: Callable[..., Tensor]) -> nn.Module:
    """Return a module with the attributes of another, without weights and with another forward."""
    other = type(module).__new__(type(module))
    nn.Module.__init__(other)  # tables and hooks of its own
    vars(other).update({key: v for key, v in vars(module).items() if not key.startswith("_")})
    other.forward = forward
    return other
