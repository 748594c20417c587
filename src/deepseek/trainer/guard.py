"""Bad steps, found before their update: NaN, Inf, a loss that jumps.

Looked at in every step: the loss, the norm of the gradient, and whether anybody but the optimizer
has written to weights or optimizer state; if so, and every 100 steps, and before each checkpoint,
all of them are read. (Memory that rots without a write shows in the next loss, or there.)
A bad step changes nothing; what then happens is the policy's: abort, skip, rollback.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

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
        weights: those that are trained, as this rank holds them, by name.
        optimizer: theirs.
        spike: a loss above this many times the median of the last 64 is bad; `None`: never.
        agree: what all ranks make of what each has found; where it is called, all call it.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        spike: float | None,
        agree: Callable[["BadStep | None"], "BadStep | None"] = lambda found: found,
    ) -> None:
        self._weights = weights
        self._optimizer = optimizer
        self._agree = agree
        self._spike = spike
        self._losses: list[float] = []
        self._watch: _Watch | None = None
        self._steps_since_scan = 0
        self._has_looked = False

    def finds_damage(self) -> bool:
        """Return whether weights or optimizer state have been written to, and are not finite."""
        self._has_looked = True
        return self._must_scan() and self._judge_here({}) is not None

    def judge(
        self,
        loss: float,
        grad_norm: float | None,
        batch: "Batch",
        *,
        gradient_may_overflow: bool,
        is_suspect: bool = False,
    ) -> BadStep | None:
        """Return what is wrong with a step, or `None`; the same on every rank.

        Args:
            loss: mean over the items of the step.
            grad_norm: L2 norm of the gradient.
            batch: looked at only to name what is wrong.
            gradient_may_overflow: in fp16 with loss scaling an infinite gradient is normal.
            is_suspect: some rank `finds_damage`.
        """
        is_finite = math.isfinite(loss) and not is_suspect
        if grad_norm is not None and not gradient_may_overflow:
            is_finite = is_finite and math.isfinite(grad_norm)
        has_looked, self._has_looked = self._has_looked, False
        if is_finite and (has_looked or not self._must_scan()):
            return self._judge_height(loss)
        bad = self._agree(self._explain(loss, grad_norm, batch, gradient_may_overflow))
        return bad if bad is not None else self._judge_height(loss)

    def _must_scan(self) -> bool:
        """Return whether weights and optimizer state have to be read, tensor by tensor."""
        self._steps_since_scan += 1
        if self._watch is None or not self._watch.is_current():
            self._watch = _Watch(self._weights, self._optimizer)
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
        if (bad := self._judge_here({})) is not None:
            return bad
        inputs = batch.get("inputs", batch.get("dense"))
        if inputs is not None and inputs.is_floating_point() and not _is_finite(inputs):
            rows = [row for row in range(len(inputs)) if not _is_finite(inputs[row])]
            index = batch["index"][rows].tolist() if "index" in batch else rows
            return BadStep("batch", f"the inputs of sample {_listed(index)} are not finite")
        if not math.isfinite(loss):
            return BadStep("loss", f"loss={loss}")
        if gradient_may_overflow or grad_norm is None or math.isfinite(grad_norm):
            return None
        grads = {n: p.grad for n, p in self._weights.items() if p.grad is not None}
        name = first_not_finite(grads)
        where = f"the gradient of {name} is not finite" if name else f"its norm is {grad_norm}"
        return BadStep("gradient", where)

    def judge_state(self, ema: Mapping[str, Tensor]) -> BadStep | None:
        """Return what must not be written to a checkpoint, or `None`. Waits for the device."""
        return self._agree(self._judge_here(ema))

    def _judge_here(self, ema: Mapping[str, Tensor]) -> BadStep | None:
        for kind, what, tensors in (
            ("weights", "the weight", self._weights),
            ("optimizer", "the optimizer's", _state_of(self._weights, self._optimizer)),
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
    """Return the name of the first tensor with a NaN or Inf in it. Waits once for each device."""
    looked_at = {
        name: tensor.detach()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() or tensor.is_complex()
    }
    sums: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in looked_at.items():  # one pass and no copy
        sums.setdefault(tensor.device, {})[name] = tensor.sum()
    suspects: set[str] = set()
    for found in sums.values():
        totals = torch.stack([each.abs().float() for each in found.values()]).tolist()
        suspects |= {n for n, total in zip(found, totals, strict=True) if not math.isfinite(total)}
    # a sum may overflow where all is well
    return next((n for n, t in looked_at.items() if n in suspects and not _is_finite(t)), None)


def _is_finite(tensor: Tensor) -> bool:
    # a finite sum, which takes no memory, has finite parts; one that overflows says nothing
    return math.isfinite(float(tensor.sum().abs())) or bool(torch.isfinite(tensor).all())


def _state_of(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {id(p): name for name, p in weights.items()}
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

    def __init__(self, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._num_states = len(optimizer.state)
        self._last = _last_state(optimizer)
        self._tensors = [*weights.values(), *_state_of(weights, optimizer).values()]
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
