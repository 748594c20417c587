"""An optimizer that takes its step weight by weight, with the bits of its ordinary step.

```
in the backward pass   each weight as soon as its gradient is there, which is then freed: the
                       gradients of all weights never exist at once (Lv et al. 2023, LOMO,
                       arXiv 2306.09782). Under FSDP2 that is when a block's are reduced; copies
                       of a model average each by itself
offloaded              each weight's state comes from the host for its update and goes back: the
                       states of all weights are never on the device at once (Rajbhandari et al.
                       2021, ZeRO-Infinity, arXiv 2104.07857; there the host updates, here the
                       device)
```
Both are for optimizers that treat each weight by itself.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from deepseek.errors import ConfigError


class WeightwiseOptimizer:
    """Steps another optimizer, one weight at a time.

    Args:
        optimizer: whose state and settings are used; it stays what is saved and resumed.
        host: keeps the states between uses; `None`: they stay where they are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, host: "HostState | None" = None) -> None:
        self._optimizer = optimizer
        self._host = host
        self._groups: dict[Tensor, tuple[dict[str, Any], dict[str, Any]]] = {}

    def step(self) -> None:
        """Update every weight that has a gradient."""
        with self.begun():
            for group in self._optimizer.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self.step_one(weight)

    @contextmanager
    def begun(self, lr: float | None = None) -> Iterator[None]:
        """Return a context in which `step_one` may be called, once for each weight.

        Args:
            lr: learning rate; that of the groups by default.
        """
        rate = {} if lr is None else {"lr": lr}
        for group in self._optimizer.param_groups:
            for weight in group["params"]:
                self._groups[weight] = group, {**group, **rate, "params": [weight]}
        try:
            yield
        finally:
            for group, own in self._groups.values():  # some count their steps in the group
                group.update((key, value) for key, value in own.items() if key != "params")
            self._groups.clear()
            if self._host is not None:
                self._host.finish()

    def step_one(self, weight: Tensor) -> None:
        """Update one weight by its gradient."""
        optimizer, whole = self._optimizer, self._optimizer.param_groups
        state = optimizer.state.get(weight)
        if self._host is not None and state:
            self._host.fetch(state, weight.device)
        optimizer.param_groups = [self._groups[weight][1]]
        try:
            optimizer.step()
        finally:
            optimizer.param_groups = whole
        if self._host is not None:
            self._host.stow(optimizer.state[weight])


class HostState:
    """Keeps the tensors of optimizer states in the memory of the host, pinned for CUDA.

    Copies are enqueued in order with the updates, so that a state is back before it is fetched.
    """

    def __init__(self) -> None:
        self._copies: dict[int, dict[str, Tensor]] = {}
        self._needs_wait = False

    def fetch(self, state: dict[str, Any], device: torch.device) -> None:
        """Bring the state of a weight to the device."""
        for key, value in state.items():
            if _is_large(value) and value.device != device:
                self._copies.setdefault(id(state), {})[key] = value
                state[key] = value.to(device, non_blocking=value.is_pinned())

    def stow(self, state: dict[str, Any]) -> None:
        """Put the state of a weight into the memory of the host."""
        copies = self._copies.pop(id(state), {})
        for key, value in state.items():
            if not _is_large(value) or value.device.type == "cpu":
                continue
            is_cuda, kept = value.device.type == "cuda", copies.get(key)
            if kept is None or kept.is_pinned() != is_cuda:
                kept = torch.empty_like(value, device="cpu", pin_memory=is_cuda)
            kept.copy_(value, non_blocking=is_cuda)
            self._needs_wait |= is_cuda
            state[key] = kept

    def finish(self) -> None:
        """Wait until all states are there: who saves a checkpoint reads them without asking."""
        if self._needs_wait:
            torch.cuda.synchronize()
        self._needs_wait = False


def _is_large(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1


class Held(Protocol):
    """A weight as this rank holds it.

    Attributes:
        name: in the model.
        parameter: whose gradient is waited for; a DTensor where ranks divide it.
        local: the numbers here, which the optimizer has.
        num_copies: ranks that hold the same numbers.
    """

    name: str
    parameter: nn.Parameter
    local: Tensor
    num_copies: int


class BackwardUpdate:
    """Updates weights in the backward pass, where it is armed.

    Args:
        optimizer: steps weight by weight.
        weights: those that are trained.
        average: makes a gradient the mean over ranks, in place; `None`: it is when it comes.
    """

    def __init__(
        self,
        optimizer: WeightwiseOptimizer,
        weights: Iterable[Held],
        average: Callable[[Tensor], None] | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._average = average
        self._squares: list[Tensor] | None = None
        self._last: list[Tensor] = []
        self._updated: set[str] = set()
        for weight in weights:
            weight.parameter.register_post_accumulate_grad_hook(partial(self._take, weight))

    @contextmanager
    def armed(self, lr: float) -> Iterator[None]:
        """Return a context whose backward pass updates; other passes leave gradients alone."""
        self._squares = []
        self._updated.clear()
        try:
            with self._optimizer.begun(lr):
                yield
        finally:
            self._last, self._squares = self._squares or [], None

    def sum_of_squares(self) -> Tensor:
        """Return this rank's share of the squared norm of the last armed pass's gradient.

        Shares of all ranks add up to it. A scalar on the device.
        """
        return torch.stack(self._last).sum() if self._last else torch.zeros(())

    def _take(self, weight: Held, parameter: Tensor) -> None:
        if self._squares is None or parameter.grad is None:
            return
        if weight.name in self._updated:
            raise ConfigError(
                f"optimizer_in_backward=true, and {weight.name} gets its gradient in more"
                " than one part: it was updated by the first alone",
                fix="set optimizer_in_backward to false, or turn off the model's own gradient"
                " checkpointing",
            )
        self._updated.add(weight.name)
        grad = parameter.grad
        grad = grad._local_tensor if isinstance(grad, DTensor) else grad
        if self._average is not None:
            self._average(grad)
        norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
        self._squares.append(norm.square() / weight.num_copies)
        weight.local.grad = grad
        self._optimizer.step_one(weight.local)
        weight.local.grad = parameter.grad = None
