"""What an optimizer step hands on, from its passes to its end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from deepseek.trainer.guard import BadStep


class Accumulated(NamedTuple):
    """What forward and backward passes leave behind, beside gradients.

    `loss_sum` is a scalar on the device, summed over the items of this rank; the counts are those
    of all ranks.
    """

    loss_sum: Tensor
    num_items: int
    num_samples: int


@dataclass(frozen=True)
class Measured:
    """A step before its update, the same on every rank.

    Attributes:
        loss_sum: scalar, over all items.
        norm: L2 norm of the gradient, a scalar; of one process on the device.
        is_suspect: some rank has found something that is not finite.
        ran_out: some rank was out of memory: all but its counts is nothing.
        time_share: of the run's time, by the clock of the first rank (`RunLength.share`).
        wants_stop: some rank wants the run to end after this step.
    """

    accumulated: Accumulated
    loss_sum: Tensor
    norm: Tensor
    is_suspect: bool
    wants_stop: bool
    ran_out: bool = False
    time_share: float = 0.0

    def numbers(self) -> tuple[float, float]:
        """Return `loss_sum` and `norm` on the host. Waits for the device, once."""
        if self.loss_sum.device.type == "cpu" or self.loss_sum.device != self.norm.device:
            return float(self.loss_sum), float(self.norm)
        return read_together(self.loss_sum, self.norm)


def read_together(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return two scalars of one device by one transfer, as `float` returns each."""
    one, other = torch.stack([first, second]).tolist()
    return one, other


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind.

    Attributes:
        loss_sum: scalar tensor on the device, over `num_items` items.
        num_items: what the loss is a mean over.
        num_samples: in the batch, over all ranks.
        lr: learning rate of the update.
        grad_norm: L2 norm of the gradient before clipping, a scalar; `None` where unknown.
        bad: what was wrong; then nothing was updated.
        wants_stop: whether some rank wants the run to end.
        parts: of several tasks, the loss and the weight of each that had labels.
    """

    loss_sum: Tensor
    num_items: int
    num_samples: int
    lr: float
    grad_norm: Tensor | None
    bad: BadStep | None = None
    wants_stop: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)
