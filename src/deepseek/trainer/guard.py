"""Bad steps, found before their update: NaN, Inf, a loss that jumps.

Looked at in every step: the loss, the norm of the gradient, the weights and the optimizer's state.
A bad step changes nothing; what then happens is the policy's: abort, skip, rollback.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from deepseek.trainer.task import Batch

Policy = Literal["abort", "skip", "rollback"]
SPIKE_WINDOW = 64
MIN_SPIKE_WINDOW = 16
SMALL_NUMEL = 1 << 15  # joined to one tensor: a sum over each would cost 2 us a tensor


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
        self._state_sum: _SumOfAll | None = None

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
        if self._state_sum is None or not self._state_sum.is_current():
            self._state_sum = _SumOfAll(self._optimizer)
        if is_finite and self._state_sum.is_finite():
            return self._judge_height(loss)
        return self._explain(loss, grad_norm, batch, gradient_may_overflow)

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


class _SumOfAll:
    """Sums weights and optimizer state: one number that is finite only if all of them are."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._num_states = len(optimizer.state)
        self._watched = _last_state(optimizer)
        tensors = list(_weights_and_state(optimizer))
        small = [t for t in tensors if _can_be_joined(t)]
        ids = {id(t) for t in small}
        self._small = [t.view(-1) for t in small]
        self._large = [t for t in tensors if id(t) not in ids]
        self._joined = torch.empty(sum(t.numel() for t in small)) if small else None

    def is_current(self) -> bool:
        """Return whether the optimizer still holds the tensors that are summed."""
        state = self._optimizer.state
        return len(state) == self._num_states and _last_state(self._optimizer) is self._watched

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Return whether the sum of all is finite. Waits for the device."""
        is_finite = True
        if self._joined is not None:
            total = torch.cat(self._small, out=self._joined).sum()
            is_finite = math.isfinite(float(total))
        if self._large:
            norms = [
                norm.float()
                for norm in torch._foreach_norm(  # pyright: ignore[reportPrivateImportUsage]
                    self._large
                )
            ]
            first = norms[0].device
            together = torch.stack([norm.to(first) for norm in norms]).sum()
            is_finite = is_finite and math.isfinite(float(together))
        return is_finite


def _can_be_joined(tensor: Tensor) -> bool:
    is_plain = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return is_plain and tensor.numel() < SMALL_NUMEL and tensor.is_contiguous()


def _weights_and_state(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    for group in optimizer.param_groups:
        yield from (p.detach() for p in group["params"] if p.is_floating_point())
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                yield value


def _last_state(optimizer: torch.optim.Optimizer) -> Tensor | None:
    last: Tensor | None = None
    for value in next(reversed(optimizer.state.values()), {}).values():
        if isinstance(value, Tensor) and value.is_floating_point():
            last = value
    return last
