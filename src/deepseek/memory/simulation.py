"""A step on paper: forward and backward with tensors that have shapes, and what would be allocated.

torch's fake tensors run the real code of a model, its loss and its memory policy; every storage is
counted from its making to its end. No weight is copied and no random number drawn.
"""

import copy
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepseek.memory.policy import MemoryPolicy


@dataclass(frozen=True)
class Simulated:
    """What a micro-batch allocates beyond weights and optimizer state.

    Attributes:
        activation_bytes: alive between forward and backward.
        gradient_bytes: of all that is trained; of the largest, if they are freed one by one.
        peak_bytes: most at any time, gradients and what kernels hand on for a moment included.
    """

    activation_bytes: int
    gradient_bytes: int
    peak_bytes: int


def simulate_step(
    module: nn.Module,
    inputs: Callable[[], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    *,
    policy: str = "off",
    remade_places: frozenset[int] | None = None,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    has_gradients: bool = False,
    frees_gradients: bool = False,
) -> Simulated:
    """Run a step on fake tensors.

    Args:
        module: the model, which is left as it is.
        inputs: makes a micro-batch, called where tensors are fake.
        loss_of: scalar loss of what the model returns, of fake tensors, too.
        policy: name of the memory policy.
        remade_places: matrix products that are done again; see `MemoryPolicy`.
        autocast: context of the forward pass.
        has_gradients: whether gradients are there before, as from the second micro-batch on.
        frees_gradients: whether each is freed as soon as it is there.

    Raises:
        Exception: whatever a model does that cannot be done with shapes alone.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        mirror = _mirror(module, fake)
        trained = [p for p in mirror.parameters() if p.requires_grad]
        if has_gradients:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
        for parameter in trained if frees_gradients else ():
            parameter.register_post_accumulate_grad_hook(_free_gradient)
        batch = inputs()
        allocations = _Allocations()
        memory = MemoryPolicy(policy, [mirror])
        memory.remade_places = remade_places
        with allocations:
            with autocast(), memory.saving():
                loss = loss_of(mirror(batch))
            alive = allocations.alive_bytes
            loss.backward()
        sizes = [p.nbytes for p in trained]
        gradient_bytes = max(sizes) if frees_gradients else sum(sizes)
        peak = allocations.peak_bytes + (gradient_bytes if has_gradients else 0)
        return Simulated(alive, gradient_bytes, peak)


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _mirror(module: nn.Module, fake: FakeTensorMode) -> nn.Module:
    """Return the model with fake weights, in training."""
    mirrored: dict[int, Any] = {}
    for parameter in module.parameters():
        twin = fake.from_tensor(parameter.detach())
        mirrored[id(parameter)] = nn.Parameter(twin, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        mirrored[id(buffer)] = fake.from_tensor(buffer.detach())
    return copy.deepcopy(module, mirrored).train()


class _Allocations(TorchDispatchMode):
    """Counts the storages that are made inside, until they are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.alive_bytes = self.peak_bytes = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            tensor.untyped_storage()._cdata
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage(), given)
        return result

    def _note(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in given or key in self._known:
            return
        size = storage.nbytes()
        self.alive_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)

        def gone(reference: object, key: int = key, size: int = size) -> None:
            self._known.pop(key, None)
            self.alive_bytes -= size

        self._known[key] = weakref.ref(storage, gone)
