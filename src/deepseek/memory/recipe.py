"""How a saved activation can be made again from what is saved anyway.

Autograd knows how each tensor came about: `tensor.grad_fn` is the node of the operation, and the
node keeps that operation's inputs for its own backward pass. An activation function's output, for
one, which the next matrix product would save, is made again from the input that the activation
function has saved already, when the product's backward pass asks for it: the nodes behind it have
not been freed yet. Nothing is traced or dispatched twice; a tensor that is not in the tables below
is kept.

```
from its node       gelu(node._saved_self), layer_norm(node._saved_input), a * b, a @ b, ...
from what is made   relu, a cast or a product of something that is made again itself
from a weight       casts of weights for autocast
a narrow copy       a float32 copy of bfloat16 numbers is kept as bfloat16
```
Where ranks of `tp` divide a model, a tensor becomes a part of a DTensor, or is taken out of one,
between two operations: that is done again along with what is made. What ranks have gathered is
kept; to make it again they would have to send it again.

Papers: Chen et al. 2016 (recomputation), arXiv 1604.06174; Korthikanti et al. 2022 (what is cheap
to recompute), arXiv 2205.05198.
"""

import threading
from collections.abc import Callable
from enum import Enum
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from deepseek.memory.epsilons import Epsilons
from deepseek.memory.node import Node


class Kind(Enum):
    """What making a tensor again costs."""

    CAST = "cast"
    POINTWISE = "pointwise"
    NORM = "norm"
    LAYER_NORM = "layer_norm"
    PRODUCT = "product"


MAX_DEPTH = 16
"""Operations in a row that are done again for one tensor."""
CHEAP = frozenset({Kind.CAST, Kind.POINTWISE, Kind.NORM, Kind.LAYER_NORM})

# -- what nodes have saved -------------------------------------------------------------------

_FROM_INPUT: dict[str, Callable[[Node], Tensor]] = {
    "GeluBackward0": lambda n: F.gelu(n._saved_self, approximate=n._saved_approximate),
    "SiluBackward0": lambda n: F.silu(n._saved_self),
    "MishBackward0": lambda n: F.mish(n._saved_self),
    "HardswishBackward0": lambda n: F.hardswish(n._saved_self),
    "HardsigmoidBackward0": lambda n: F.hardsigmoid(n._saved_self),
    "HardtanhBackward0": lambda n: F.hardtanh(
        n._saved_self, float(n._saved_min_val), float(n._saved_max_val)
    ),
    "LeakyReluBackward0": lambda n: F.leaky_relu(n._saved_self, float(n._saved_negative_slope)),
    "SoftplusBackward0": lambda n: F.softplus(
        n._saved_self, float(n._saved_beta), float(n._saved_threshold)
    ),
    "PowBackward0": lambda n: torch.pow(n._saved_self, n._saved_exponent),
    "ErfBackward0": lambda n: torch.erf(n._saved_self),
    "CosBackward0": lambda n: torch.cos(n._saved_self),
    "SinBackward0": lambda n: torch.sin(n._saved_self),
}
_PRODUCTS = frozenset({"AddmmBackward0", "MmBackward0", "BmmBackward0", "LinearBackward0"})
_NORMS = frozenset({
    "NativeLayerNormBackward0", "FusedRmsNormBackward0", "NativeBatchNormBackward0",
    "CudnnBatchNormBackward0", "NativeGroupNormBackward0",
})  # fmt: skip
_RESHAPED = frozenset({"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"})
_TRANSPOSED = "TBackward0"
_INTO_DTENSOR, _OUT_OF_DTENSOR = "_FromTorchTensorBackward", "_ToTorchTensorBackward"
_REDISTRIBUTED = "RedistributeBackward"
_CAST = "ToCopyBackward0"
_LEAF = "torch::autograd::AccumulateGrad"


class _Making(threading.local):
    """How many recipes of this thread are being followed, one for another."""

    depth = 0


_making = _Making()


def is_for_recipe() -> bool:
    """Return whether what is asked for now is to make another tensor again."""
    return _making.depth > 0


class Recipe:
    """The output of one node, made when it is asked for.

    It is remembered between the first and the last of the operations that have saved it: these
    come one after another.

    Attributes:
        kind: of the operation that makes it.
        num_uses: operations that have saved it, and have not asked for it yet.
        held_bytes: that it keeps of its own.
    """

    def __init__(self, kind: Kind, make: Callable[[], Tensor], node: Node) -> None:
        self.kind = kind
        self.num_uses = 0
        self.held_bytes = 0
        self._make = make
        self._node = node  # alive, so that its id is its own
        self._value: Tensor | None = None

    def rehearse(self) -> None:
        """Make the tensor for nobody."""
        _making.depth += 1
        try:
            with torch.no_grad():
                self._make()
        finally:
            _making.depth -= 1

    def value(self) -> Tensor:
        """Return the tensor. Only an operation's backward pass uses it up, not another recipe."""
        made = self._value
        if made is None:
            _making.depth += 1
            try:
                made = self._make()
            finally:
                _making.depth -= 1
        if not is_for_recipe():
            self.num_uses -= 1
        self._value = made if self.num_uses > 0 else None
        return made


def _unchanged(weight: Tensor, version: int) -> Tensor:
    if weight._version != version:
        raise RuntimeError(
            "a weight that is needed to compute an activation again has been modified by an inplace"
            f" operation: {tuple(weight.shape)} is at version {weight._version}, expected {version}"
        )
    return weight


class Cookbook:
    """Finds recipes; one for each node, whoever asks.

    Args:
        epsilons: of norms whose node does not know it: parameter -> value.
        kinds: of recipes that are wanted.
        is_closed: whether a node must not be asked for what it has saved.
    """

    def __init__(
        self,
        epsilons: Epsilons,
        kinds: frozenset[Kind],
        is_closed: Callable[[Node], bool] = lambda node: False,
    ) -> None:
        self.kinds = kinds
        self._is_closed = is_closed
        self._epsilons = epsilons
        self._depth = 0
        self._recipes: WeakValueDictionary[int, Recipe] = WeakValueDictionary()

    def find(self, tensor: Tensor) -> Recipe | None:
        """Return how a tensor is made again that is no view of another."""
        node = tensor.grad_fn
        if node is None or tensor.output_nr != 0 or self._is_closed(node):
            return None
        recipe = self._of(node)
        if recipe is None and node.name() == _CAST and Kind.CAST in self.kinds:
            return self._narrow(tensor, node)
        return recipe

    def _narrow(self, tensor: Tensor, node: Node) -> Recipe | None:
        """Return a copy in the dtype that a float32 tensor had before: nothing is lost."""
        before, output = node.next_functions[0]
        if before is None or before.name() == _LEAF or tensor.dtype is not torch.float32:
            return None
        narrow = before._input_metadata[output].dtype
        if narrow not in (torch.bfloat16, torch.float16):
            return None
        copy = tensor.detach().to(narrow)
        recipe = Recipe(Kind.CAST, lambda: copy.to(torch.float32), node)
        recipe.held_bytes = copy.nbytes
        self._recipes[id(node)] = recipe
        return recipe

    def _of(self, node: Node) -> Recipe | None:
        known = self._recipes.get(id(node))
        if known is not None or self._depth == MAX_DEPTH or self._is_closed(node):
            return known
        self._depth += 1
        try:
            found = self._write(node)
        finally:
            self._depth -= 1
        if found is None or found[0] not in self.kinds:
            return None
        recipe = Recipe(*found, node)
        self._recipes[id(node)] = recipe
        return recipe

    def _write(self, node: Node) -> tuple[Kind, Callable[[], Tensor]] | None:
        name = node.name()
        if (make := _FROM_INPUT.get(name)) is not None:
            return Kind.POINTWISE, lambda: make(node)
        if name in ("MulBackward0", "DivBackward0"):
            return self._two_sided(node, torch.mul if name[0] == "M" else torch.div)
        if name == "ReluBackward0":
            return self._after(node, Kind.POINTWISE, torch.relu)
        if name == _CAST:
            dtype = node._input_metadata[0].dtype
            return self._after(node, Kind.CAST, lambda tensor: tensor.to(dtype))
        if name == "NativeDropoutBackward0":
            return self._dropped_out(node)
        if name in _RESHAPED:
            shape = node._input_metadata[0].shape
            return self._viewed(node, lambda tensor: tensor.view(shape))
        if name == _TRANSPOSED:
            return self._viewed(node, torch.t)
        if name == _INTO_DTENSOR:
            return self._viewed(node, _divider(node))
        if name == _OUT_OF_DTENSOR:
            return self._viewed(_past_nothing(node), _local)
        if name in _NORMS:
            return self._norm(node, name)
        if name in _PRODUCTS:
            return self._product(node, name)
        return None

    def _input(self, node: Node, index: int = 0) -> Callable[[], Tensor] | None:
        """Return how an input that the node has not saved is had, if it can be."""
        before, output = node.next_functions[index]
        if before is None:
            return None
        if before.name() == _LEAF:
            version = before.variable._version
            return lambda: _unchanged(before.variable, version)
        recipe = self._of(before) if output == 0 else None
        return None if recipe is None else recipe.value

    def _after(
        self, node: Node, kind: Kind, act: Callable[[Tensor], Tensor]
    ) -> tuple[Kind, Callable[[], Tensor]] | None:
        given = self._input(node)
        return None if given is None else (kind, lambda: act(given()))

    def _two_sided(
        self, node: Node, act: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Kind, Callable[[], Tensor]] | None:
        """A side is saved where the other has a gradient; a quotient's lower side always is."""
        (left, _), (right, _) = node.next_functions
        make_left = (lambda: node._saved_self) if right is not None else self._input(node, 0)
        is_right_saved = left is not None
        make_right = (lambda: node._saved_other) if is_right_saved else self._input(node, 1)
        if make_left is None or make_right is None:
            return None
        dtype = node._input_metadata[0].dtype  # a product in place has that of its left side
        return Kind.POINTWISE, lambda: act(make_left(), make_right()).to(dtype)

    def _viewed(
        self, node: Node, view: Callable[[Tensor], Tensor]
    ) -> tuple[Kind, Callable[[], Tensor]] | None:
        """The same numbers seen otherwise."""
        before, output = node.next_functions[0]
        recipe = self._of(before) if before is not None and output == 0 else None
        return None if recipe is None else (recipe.kind, lambda: view(recipe.value()))

    def _dropped_out(self, node: Node) -> tuple[Kind, Callable[[], Tensor]] | None:
        """The mask is kept: no random number is drawn again."""
        scale = 1.0 / (1.0 - node._saved_p) if node._saved_p < 1.0 else 0.0
        return self._after(
            node, Kind.POINTWISE, lambda tensor: tensor.mul(node._saved_result1).mul_(scale)
        )

    def _norm(self, node: Node, name: str) -> tuple[Kind, Callable[[], Tensor]] | None:
        if name in ("NativeBatchNormBackward0", "CudnnBatchNormBackward0"):
            return self._batch_norm(node, name)
        epsilon = self._epsilons.of(node)
        if epsilon is None:
            return None
        if name == "NativeLayerNormBackward0":
            return Kind.LAYER_NORM, lambda: F.layer_norm(
                node._saved_input, node._saved_normalized_shape, node._saved_weight,
                node._saved_bias, epsilon,
            )  # fmt: skip
        if name == "FusedRmsNormBackward0":
            return Kind.LAYER_NORM, lambda: F.rms_norm(
                node._saved_input, node._saved_normalized_shape, node._saved_weight, epsilon
            )
        bias = self._input(node, 2) if node.next_functions[2][0] is not None else (lambda: None)
        if bias is None:
            return None
        return Kind.NORM, lambda: F.group_norm(
            node._saved_input, node._saved_group, node._saved_weight, bias(), epsilon
        )

    def _batch_norm(self, node: Node, name: str) -> tuple[Kind, Callable[[], Tensor]] | None:
        """Statistics are taken again: the running ones have been updated by the first time."""
        bias = self._input(node, 2)
        if bias is None or not node._saved_training:
            return None
        if name[0] == "C":
            return Kind.NORM, lambda: torch.cudnn_batch_norm(
                node._saved_input, node._saved_weight, bias(), None, None, True, 0.0,
                node._saved_epsilon,
            )[0]  # fmt: skip
        return Kind.NORM, lambda: torch.native_batch_norm(
            node._saved_input, node._saved_weight, bias(), None, None, True, 0.0, node._saved_eps
        )[0]

    def _product(self, node: Node, name: str) -> tuple[Kind, Callable[[], Tensor]] | None:
        if any(before is None for before, _ in node.next_functions):
            return None  # a frozen side: the other is not saved
        if name == "AddmmBackward0":
            bias = self._input(node, 0)
            if bias is None or node._saved_alpha != 1 or node._saved_beta != 1:
                return None
            return Kind.PRODUCT, lambda: torch.addmm(bias(), node._saved_mat1, node._saved_mat2)
        if name == "LinearBackward0":
            bias = self._input(node, 2) if len(node.next_functions) > 2 else (lambda: None)
            if bias is None:
                return None
            return Kind.PRODUCT, lambda: F.linear(node._saved_input, node._saved_weight, bias())
        act = torch.mm if name == "MmBackward0" else torch.bmm
        return Kind.PRODUCT, lambda: act(node._saved_self, node._saved_mat2)


def _divider(node: Node) -> Callable[[Tensor], Tensor]:
    """Return what makes a rank's part a DTensor, as the node did."""
    kept = vars(node).values()  # by their kinds: versions of torch name them differently
    mesh = next(each for each in kept if isinstance(each, DeviceMesh))
    placements = next(each for each in kept if isinstance(each, tuple))
    return lambda part: DTensor.from_local(part, mesh, placements, run_check=False)


def _past_nothing(node: Node) -> Node:
    """Return the node, or one before it that has sent nothing: a dim was called by another name."""
    before, _ = node.next_functions[0]
    if before is None or before.name() != _REDISTRIBUTED:
        return node
    is_same = before.current_spec.placements == node.dtensor_spec.placements
    return before if is_same else node


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
