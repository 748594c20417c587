"""Bad steps, found before their update: NaN, Inf, a loss that jumps.

Looked at in every step: the loss, the norm of the gradient, and whether anybody but the optimizer
has written to weights or optimizer state; if so, and every 100 steps, and before each checkpoint,
all of them are read. (Memory that rots without a write shows in the next loss, or there.)
A bad step changes nothing; what then happens is the policy's: abort, skip, rollback.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepseek.trainer.task import Batch

Policy = Literal["abort", "skip", "rollback"]
SPIKE_WINDOW = 64
MIN_SPIKE_WINDOW = 16
SCAN_EVERY = 100


@dataclass(frozen=True)
class BadStep:
    """What was wrong with a step.

    Attributes:
        kind: `loss`, `gradient`, `weights`, `optimizer`, `batch`, `spike` or `replayed`.
        detail: the place and the value, for people.
        action: what was done about it when it was first taken; `None` for a new one.
    """

    kind: str
    detail: str
    action: str | None = None

    @property
    def is_lasting(self) -> bool:
        """Whether skipping the batch cannot help: the state itself is damaged."""
        return self.kind in ("weights", "optimizer")


class Guard:
    """Judges steps.

    Args:
        module: the model that is trained.
        optimizer: its optimizer.
        spike: a loss above this many times the median of the last 64 is bad; `None`: never.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, spike: float | None
    ) -> None:
        self._module = module
        self._optimizer = optimizer
        self._spike = spike
        self._losses: list[float] = []
        self._watch: _Watch | None = None
        self._steps_since_scan = 0

    def judge(
        self, loss: float, grad_norm: float | None, batch: "Batch", *, gradient_may_overflow: bool
    ) -> BadStep | None:
        """Return what is wrong with a step, or `None`.

        Args:
            loss: mean over the items of the step.
            grad_norm: L2 norm of the gradient.
            batch: looked at only to name what is wrong.
            gradient_may_overflow: in fp16 with loss scaling an infinite gradient is normal.
        """
        is_finite = math.isfinite(loss)
        if grad_norm is not None and not gradient_may_overflow:
            is_finite = is_finite and math.isfinite(grad_norm)
        if is_finite and not self._must_scan():
            return self._judge_height(loss)
        if (bad := self._explain(loss, grad_norm, batch, gradient_may_overflow)) is not None:
            return bad
        return self._judge_height(loss)

    def _must_scan(self) -> bool:
        """Return whether weights and optimizer state have to be read, tensor by tensor."""
        self._steps_since_scan += 1
        if self._watch is None or not self._watch.is_current():
            self._watch = _Watch(self._module, self._optimizer)
            self._steps_since_scan = SCAN_EVERY
        if self._steps_since_scan < SCAN_EVERY and self._watch.is_untouched():
            return False
        self._steps_since_scan = 0
        self._watch.note()
        return True

    def note_update(self) -> None:
        """The optimizer has just written to weights and state."""
        if self._watch is not None:
            self._watch.note()

    def _judge_height(self, loss: float) -> BadStep | None:
        if self._spike is None:
            return None
        if len(self._losses) >= MIN_SPIKE_WINDOW:
            median = sorted(self._losses)[len(self._losses) // 2]
            if median > 0 and loss > self._spike * median:
                detail = (
                    f"loss={loss:.4g} is {loss / median:.1f} times the median of the last"
                    f" {len(self._losses)} steps ({median:.4g})"
                )
                return BadStep("spike", detail)
        self._losses = [*self._losses[-(SPIKE_WINDOW - 1) :], loss]
        return None

    def _explain(
        self, loss: float, grad_norm: float | None, batch: "Batch", gradient_may_overflow: bool
    ) -> BadStep | None:
        """Find the cause; the sums may also have overflowed without any, then return `None`."""
        if (bad := self.judge_state({})) is not None:
            return bad
        inputs = batch.get("inputs")
        if inputs is not None and inputs.is_floating_point() and not _is_finite(inputs):
            rows = [row for row in range(len(inputs)) if not _is_finite(inputs[row])]
            index = batch["index"][rows].tolist() if "index" in batch else rows
            return BadStep("batch", f"the inputs of sample {_listed(index)} are not finite")
        if not math.isfinite(loss):
            return BadStep("loss", f"loss={loss}")
        if gradient_may_overflow or grad_norm is None or math.isfinite(grad_norm):
            return None
        grads = {n: p.grad for n, p in self._module.named_parameters() if p.grad is not None}
        name = first_not_finite(grads)
        where = f"the gradient of {name} is not finite" if name else f"its norm is {grad_norm}"
        return BadStep("gradient", where)

    def judge_state(self, ema: Mapping[str, Tensor]) -> BadStep | None:
        """Return what must not be written to a checkpoint, or `None`. Waits for the device."""
        for kind, what, tensors in (
            ("weights", "the weight", _trained(self._module)),
            ("optimizer", "the optimizer's", _state_of(self._module, self._optimizer)),
            ("weights", "the averaged weight", ema),
        ):
            if (name := first_not_finite(tensors)) is not None:
                return BadStep(kind, f"{what} {name} is not finite")
        return None

    def state_dict(self) -> dict:
        """Return the losses that a spike is measured by."""
        return {"losses": self._losses}

    def load_state_dict(self, state: dict) -> None:
        """Take them back."""
        self._losses = list(state["losses"])


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a NaN or Inf in it."""
    return next((name for name, tensor in tensors.items() if not _is_finite(tensor)), None)


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if math.isfinite(float(tensor.detach().sum())):
        return True  # one pass and no copy; a sum may overflow, so what follows decides
    return bool(torch.isfinite(tensor.detach()).all())


def _trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _state_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {id(p): name for name, p in module.named_parameters()}
    return {
        f"{key} of {names.get(id(parameter), '?')}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _listed(values: Sequence[int]) -> str:
    shown = ", ".join(str(value) for value in values[:4])
    return shown + (f" and {len(values) - 4} more" if len(values) > 4 else "")


class _Watch:
    """Notices writes to weights and optimizer state that were not the optimizer's.

    torch counts the writes to a tensor. Reading the counts costs microseconds, reading the tensors
    up to a third of a small step.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._num_states = len(optimizer.state)
        self._last = _last_state(optimizer)
        state = _state_of(module, optimizer)
        self._tensors = [*_trained(module).values(), *state.values()]
        self.note()

    def is_current(self) -> bool:
        """Return whether the optimizer still holds the tensors that are watched."""
        state = self._optimizer.state
        return len(state) == self._num_states and _last_state(self._optimizer) is self._last

    def note(self) -> None:
        """Take the counts as they are after an update."""
        self._versions = [tensor._version for tensor in self._tensors]

    def is_untouched(self) -> bool:
        """Return whether nobody wrote since `note`."""
        return self._versions == [tensor._version for tensor in self._tensors]


def _last_state(optimizer: torch.optim.Optimizer) -> Tensor | None:
    values = next(reversed(optimizer.state.values()), {}).values()
    return next((value for value in values if isinstance(value, Tensor)), None)
