"""Attention that a module writes out, computed by the fused kernel of torch (SDPA) instead.

```
softmax(q k^T * scale + mask) v    ->    scaled_dot_product_attention(q, k, v, mask, scale)
```
Only the forward pass of the module that holds the softmax is recorded (torch.fx), so what is around
it may be anything. The scale may be a division or a product, the mask added, filled in
(`masked_fill`) or chosen by `where`, products `@`, `matmul`, `bmm` or `einsum`. Each module is
compared with what it was, on what it got in the model, before it takes its place.
"""

import copy
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_leaves

TOLERANCE = 1e-4
"""Largest difference of a module's outputs, as a share of the largest."""
FILLED_FROM = -1e9
"""What is filled in for a masked score has to be this or less: softmax leaves nothing of it."""
_ADD, _SCALE_UP = ("add", "add_", "iadd"), ("mul", "mul_", "imul")
_SCALE_DOWN = ("truediv", "div", "div_", "true_divide", "itruediv")
_PRODUCTS = ("matmul", "bmm")
_PASSED = ("dropout", "Dropout", "to", "type_as", "float", "Identity", "contiguous")
_SWITCHED = "scaled_dot_product_attention"


@dataclass
class _Scores:
    """What is below a softmax: q k^T, its scale, and what is added."""

    query: fx.Node
    key: fx.Node
    is_key_turned: bool
    scale: Any = None
    divides: bool = False
    masks: tuple[fx.Node, ...] = ()
    """In the order of the softmax: the last computed first."""


class _OtherForm(Exception):
    """The computation is of another form; why is its text."""


def fuse_written_attention(
    module: nn.Module, inputs: Tensor
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Let modules that write attention out use the kernel, in place.

    Args:
        module: in evaluation.
        inputs: (B, ...), as it takes them.

    Returns:
        Names of the modules that were fused, and (name, why) of those that stay.
    """
    found = dict(_find_written(module))
    if not found:
        return (), ()
    given = inputs_of(module, found, inputs)
    fused, kept = {}, []
    for name, part in found.items():
        if name not in given:
            continue  # it is not used
        try:
            made = _fuse_one(part, *given[name])
        except _OtherForm as why:
            kept.append((name, str(why)))
            continue
        except Exception as error:  # of any type: foreign code, in a form that nobody thought of
            kept.append((name, f"is of another form: {_first_line(error)}"))
            continue
        if made is not None:
            fused[name] = part
            module.set_submodule(name, made)
    try:
        with torch.inference_mode():
            module(inputs)
    except Exception as error:  # something else reads what such a module had
        for name, part in fused.items():
            module.set_submodule(name, part)
            kept.append((name, f"the model needs it as it is: {_first_line(error)}"))
        fused = {}
    return tuple(fused), tuple(kept)


def _find_written(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules in whose code there is a softmax and no fused attention."""
    for name, part in module.named_modules():
        if not name or type(part).__module__.startswith("torch.nn"):
            continue
        if getattr(part, "fused_attn", False):  # timm's switch is on
            continue
        own = [kind for kind in type(part).__mro__ if not kind.__module__.startswith("torch")]
        parts = [each for kind in own for each in vars(kind).values()]
        codes = [each.__code__ for each in parts if isinstance(each, FunctionType)]
        words = {word for code in codes for word in code.co_names}
        holds = any(isinstance(child, nn.Softmax) for child in part.children())
        if ("softmax" in words or holds) and _SWITCHED not in words:
            yield name, part


def inputs_of(
    module: nn.Module, parts: Mapping[str, nn.Module], inputs: Tensor
) -> dict[str, tuple[tuple, dict]]:
    """Return what modules get when they are first called in a forward pass, by name."""
    found: dict[str, tuple[tuple, dict]] = {}
    handles = [
        part.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: found.setdefault(name, (args, kwargs)) and None,
            with_kwargs=True,
        )
        for name, part in parts.items()
    ]
    try:
        with torch.inference_mode():
            module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _fuse_one(part: nn.Module, args: tuple, kwargs: dict) -> nn.Module | None:
    """Return a module with the kernel; `None` where its softmax is of something else."""
    try:
        made = _record(part)
        values = _Values(made)
        want = _outputs(values.run_with(args, kwargs))
    except Exception as error:  # tracing runs foreign code on what is no tensor
        raise _OtherForm(f"cannot be traced: {_first_line(error)}") from error
    graph = made.graph
    softmaxes = [node for node in graph.nodes if _name_of(node).lower() == "softmax"]
    places = [(node, end) for node in softmaxes if (end := _product_behind(node)) is not None]
    if not places:
        return None
    for node, end in places:
        _replace(graph, node, end, values.known)
    graph.eliminate_dead_code()
    graph.lint()
    made.recompile()
    with torch.inference_mode():
        found = _outputs(made(*args, **kwargs))
    for one, other in zip(want, found, strict=True):
        scale = float(one.abs().max()) or 1.0
        if not float((one - other).abs().max()) <= TOLERANCE * scale:
            raise _OtherForm("the kernel computes something else")
    return made.eval()


class _Recorded(fx.GraphModule):
    """A recorded module that holds all that the original holds, also when it is copied.

    A `GraphModule` keeps what its graph reads and drops the rest: a buffer that is only the number
    in masked places would be missing in the model's file.
    """

    def __deepcopy__(self, memo: dict) -> fx.GraphModule:
        made = super().__deepcopy__(memo)
        _hold(made, copy.deepcopy(_Held.of(self), memo))
        return made

    def __reduce__(self) -> tuple:
        build, given = super().__reduce__()
        return _rebuild, (build, given, _Held.of(self))


@dataclass(frozen=True)
class _Held:
    """What a module holds itself, by name."""

    children: dict[str, nn.Module | None]
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, Tensor | None]
    not_saved: set[str]

    @classmethod
    def of(cls, module: nn.Module) -> "_Held":
        return cls(
            dict(module._modules), dict(module._parameters), dict(module._buffers),
            set(module._non_persistent_buffers_set),
        )  # fmt: skip


def _hold(module: nn.Module, held: _Held) -> None:
    """Let a module hold all of this, and save what is to be saved."""
    for name, child in held.children.items():
        module.add_module(name, child)
    for name, weight in held.parameters.items():
        module.register_parameter(name, weight)
    for name, buffer in held.buffers.items():
        module.register_buffer(name, buffer, name not in held.not_saved)


def _rebuild(build: Callable[..., fx.GraphModule], given: tuple, held: _Held) -> fx.GraphModule:
    plain = build(*given)
    made = _Recorded(plain, plain.graph)
    _hold(made, held)
    return made


def _record(part: nn.Module) -> fx.GraphModule:
    """Return a module with a recorded forward pass, and with all that the given one holds."""
    made = _Recorded(part, _Tracer().trace(part), type(part).__name__)
    _hold(made, _Held.of(part))
    # constants that tracing met are no part of the model's file
    made._non_persistent_buffers_set |= made._buffers.keys() - part._buffers.keys()
    return made


class _Tracer(fx.Tracer):
    """Records the forward pass of one module; those in it are single steps."""

    proxy_buffer_attributes = True  # a mask is cut to a length that only a run knows

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Values(fx.Interpreter):
    """Runs a graph and keeps what each node gives: tensors as they are, and numbers."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.known: dict[fx.Node, Any] = {}
        self._inputs = [node for node in module.graph.nodes if node.op == "placeholder"]

    def run_with(self, args: tuple, kwargs: dict) -> object:
        names = [node.target for node in self._inputs]
        defaults = [node.args[0] if node.args else None for node in self._inputs]
        rest = zip(names[len(args) :], defaults[len(args) :], strict=True)
        with torch.inference_mode():
            return self.run(*args, *(kwargs.get(str(name), default) for name, default in rest))

    def run_node(self, n: fx.Node) -> object:
        self.known[n] = found = super().run_node(n)
        return found


def _outputs(found: object) -> list[Tensor]:
    return [each for each in tree_leaves(found) if isinstance(each, Tensor)]


def _module_of(node: fx.Node) -> nn.Module:
    """Return the module that a node calls."""
    owner = node.graph.owning_module
    if owner is None:
        raise _OtherForm("its graph belongs to no module")
    return owner.get_submodule(str(node.target))


def _name_of(node: fx.Node) -> str:
    """Return what a node calls: `matmul`, `masked_fill`, `Softmax`."""
    if node.op == "call_module":
        return type(_module_of(node)).__name__
    if node.op == "call_function":
        return getattr(node.target, "__name__", "")
    return str(node.target) if node.op == "call_method" else ""


def _product_behind(softmax: fx.Node) -> fx.Node | None:
    """Return the product of weights and values; `None`: this is no attention."""
    node = softmax
    while True:
        products = [u for u in node.users if _name_of(u) in (*_PRODUCTS, "einsum")]
        if products:
            return products[0]
        passed = [user for user in node.users if _name_of(user) in _PASSED]
        if len(passed) != 1:
            return None
        node = passed[0]


def _replace(graph: fx.Graph, softmax: fx.Node, end: fx.Node, known: dict[fx.Node, Any]) -> None:
    """Put the kernel in the place of the product behind a softmax."""
    value = _value_of(softmax, end)
    scores = _read_scores(softmax, known)
    with graph.inserting_before(end):
        key = scores.key
        if scores.is_key_turned:
            key = graph.call_method("transpose", (key, -2, -1))
        scale = 1.0 if scores.scale is None else scores.scale
        if scores.divides:
            is_node = isinstance(scale, fx.Node)
            scale = graph.call_function(operator.truediv, (1.0, scale)) if is_node else 1 / scale
        mask = None
        for each in scores.masks:
            added = _mask_of(graph, each, scores.query, known)
            mask = added if mask is None else graph.call_function(operator.add, (mask, added))
        made = graph.call_function(
            scaled_dot_product_attention, (scores.query, key, value),
            {"attn_mask": mask, "scale": scale},
        )  # fmt: skip
    end.replace_all_uses_with(made)


def _value_of(softmax: fx.Node, end: fx.Node) -> fx.Node:
    """Return the values; weights and product have no other readers."""
    node = before = softmax
    while node is not end:
        if len(node.users) != 1:
            raise _OtherForm("its weights are read elsewhere, too")
        before, node = node, next(iter(node.users))
    left, right = _factors(end)
    if left is not before or (_name_of(end) == "einsum" and not _is_product(end, turned=False)):
        raise _OtherForm("the product with the values is of another form")
    return right


def _read_scores(softmax: fx.Node, known: dict[fx.Node, Any]) -> _Scores:
    """Read upwards from a softmax to the product of queries and keys."""
    node = _argument(softmax, 0, "input")
    if _dim_of(softmax) not in (-1, known[node].ndim - 1):
        raise _OtherForm("its softmax is not along the last dimension")
    masks: list[fx.Node] = []
    scale: Any = None
    divides = False
    while _name_of(node) not in (*_PRODUCTS, "einsum"):
        if len(node.users) != 1:
            raise _OtherForm("its scores are read elsewhere, too")
        name = _name_of(node)
        if name in (*_SCALE_UP, *_SCALE_DOWN):
            following, other = _branch(node)
            if scale is not None or not isinstance(known.get(other, other), int | float):
                raise _OtherForm("its scores are scaled by more than a number")
            scale, divides = other, name in _SCALE_DOWN
        elif name in _ADD or name in ("masked_fill", "masked_fill_", "where"):
            if scale is not None:
                raise _OtherForm("its mask is scaled")
            masks.append(node)
            following = _branch(node)[0]
        elif name in _PASSED:
            following = _argument(node, 0, "input")
        else:
            raise _OtherForm(f"its scores go through {name or node.op}")
        node = following
    if len(node.users) != 1:
        raise _OtherForm("its scores are read elsewhere, too")
    query, key = _factors(node)
    is_turned = _name_of(node) != "einsum"
    if not is_turned and not _is_product(node, turned=True):
        raise _OtherForm("its scores are a product of another form")
    return _Scores(query, key, is_turned, scale, divides, tuple(masks))


def _branch(node: fx.Node) -> tuple[fx.Node, Any]:
    """Return the argument that comes from the product, and the other one."""
    if _name_of(node) == "where":
        chosen = _argument(node, 1, "input")
        if not _leads_to_product(chosen):
            raise _OtherForm("its mask is of another form")
        return chosen, _argument(node, 2, "other")
    first, second = (_argument(node, 0, "input"), _argument(node, 1, "other", "mask"))
    if _name_of(node) in _ADD + _SCALE_UP and not _leads_to_product(first):
        return second, first
    return first, second


def _leads_to_product(node: object) -> bool:
    chain = (*_ADD, *_SCALE_UP, *_SCALE_DOWN, "masked_fill", "masked_fill_", "where", *_PASSED)
    if not isinstance(node, fx.Node):
        return False
    name = _name_of(node)
    if name in (*_PRODUCTS, "einsum"):
        return True
    return name in chain and any(map(_leads_to_product, node.all_input_nodes))


def _mask_of(graph: fx.Graph, node: fx.Node, query: fx.Node, known: dict[fx.Node, Any]) -> fx.Node:
    """Return what is added to the scores, of the dtype of the queries."""
    name = _name_of(node)
    if name in _ADD:
        added = _branch(node)[1]
        if not isinstance(known.get(added), Tensor):
            raise _OtherForm("a number is added to its scores")
        return graph.call_method("type_as", (added, query))
    filled = _argument(node, 2, "value", "other")
    number = known.get(filled, filled)
    number = float(number) if isinstance(number, int | float | Tensor) else 0.0
    if not number <= FILLED_FROM:
        raise _OtherForm(f"what it masks is filled with {number:g}, of which something is left")
    chosen = _argument(node, 0, "condition") if name == "where" else _argument(node, 1, "mask")
    if name == "where":
        chosen = graph.call_method("logical_not", (chosen,))
    zeros = graph.call_function(torch.zeros_like, (chosen,), {"dtype": known[query].dtype})
    return graph.call_method("masked_fill", (zeros, chosen, number))


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    at = 1 if _name_of(node) == "einsum" else 0
    left, right = _argument(node, at, "input"), _argument(node, at + 1, "other", "mat2")
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        raise _OtherForm("a product has a constant factor")
    return left, right


def _is_product(node: fx.Node, *, turned: bool) -> bool:
    """Return whether an einsum is `...id,...jd->...ij` (turned) or `...ij,...jd->...id`."""
    sides = str(node.args[0]).replace(" ", "").replace("...", ".").split("->")
    left, _, right = sides[0].partition(",")
    if len(sides) != 2 or min(len(left), len(right), len(sides[1])) < 2 or left[:-2] != right[:-2]:
        return False
    (i, inner), rest = left[-2:], right[-2:]
    outer = rest[0] if turned else rest[1]
    wanted = (outer, inner) if turned else (inner, outer)
    return tuple(rest) == wanted and sides[1] == left[:-2] + i + outer


def _argument(node: fx.Node, at: int, *names: str) -> Any:
    if at < len(node.args):
        return node.args[at]
    return next((node.kwargs[name] for name in names if name in node.kwargs), None)


def _dim_of(softmax: fx.Node) -> object:
    if softmax.op == "call_module":
        return _module_of(softmax).dim
    return _argument(softmax, 1, "dim")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
