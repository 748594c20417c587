"""One optimizer step: micro-batches, autocast, backward, clipping, update.

The loss of every micro-batch is divided by the count of items of the *whole* step, so that
accumulated gradients equal those of the large batch, also when the last micro-batch is smaller.
Nothing here waits for the device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek.models import ModelEngine
from deepseek.trainer.precision import Precision
from deepseek.trainer.schedule import Schedule
from deepseek.trainer.task import Batch, Task


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind, on the device.

    `loss_sum` is a scalar tensor over `num_items` items; `grad_norm` is `None` where it was not
    computed.
    """

    loss_sum: Tensor
    num_items: int
    lr: float
    grad_norm: Tensor | None


class TrainStep:
    """Takes one batch through forward, backward and update.

    Args:
        engine: the model, on its device.
        task: gives the loss.
        optimizer: a bound torch optimizer.
        schedule: gives the learning rate of each step.
        precision: the compute dtype.
        grad_accum_steps: micro-batches per step.
        clip_grad_norm: largest L2 norm of the gradient, or `None`.
        device: where batches go.
        channels_last: store images as NHWC.
    """

    def __init__(
        self,
        engine: ModelEngine,
        task: Task,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        precision: Precision,
        *,
        grad_accum_steps: int,
        clip_grad_norm: float | None,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self.engine = engine
        self.task = task
        self.optimizer = optimizer
        self.schedule = schedule
        self.precision = precision
        self.grad_accum_steps = grad_accum_steps
        self.clip_grad_norm = clip_grad_norm
        self.device = device
        self.channels_last = channels_last
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.needs_scaler)
        self._parameters = [p for p in engine.parameters() if p.requires_grad]

    def __call__(self, batch: Batch, step: int, wants_grad_norm: bool = False) -> StepResult:
        """Update the model once.

        Args:
            batch: `inputs` (B, ...), `targets` (B, ...), still on the host.
            step: number of the update, from 0; sets the learning rate.
            wants_grad_norm: compute the norm even where nothing is clipped.
        """
        num_items = self.task.count_items(batch)
        loss_sum: Tensor | None = None
        for micro_batch in self.split(batch):
            on_device = move_batch(micro_batch, self.device, self.channels_last)
            with self.precision.autocast():
                micro_loss = self.task.loss(self.engine(on_device["inputs"]), on_device)
            self._backward(micro_loss / num_items)
            detached = micro_loss.detach()
            loss_sum = detached if loss_sum is None else loss_sum + detached
        lr = self.schedule.lr(step)
        grad_norm = self._update(lr, wants_grad_norm)
        return StepResult(
            loss_sum if loss_sum is not None else torch.zeros(()), num_items, lr, grad_norm
        )

    def split(self, batch: Batch) -> Iterator[Batch]:
        """Cut a batch into at most `grad_accum_steps` parts along the first dim."""
        if self.grad_accum_steps == 1:
            yield batch
            return
        size = -(-len(batch["targets"]) // self.grad_accum_steps)
        for start in range(0, len(batch["targets"]), size):
            yield {name: value[start : start + size] for name, value in batch.items()}

    def _backward(self, loss: Tensor) -> None:
        if self.precision.needs_scaler:
            loss = self.scaler.scale(loss)
        loss.backward()

    def _update(self, lr: float, wants_grad_norm: bool) -> Tensor | None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.precision.needs_scaler:
            self.scaler.unscale_(self.optimizer)
        grad_norm = self._clip(wants_grad_norm)
        if self.precision.needs_scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def _clip(self, wants_grad_norm: bool) -> Tensor | None:
        if self.clip_grad_norm is None and not wants_grad_norm:
            return None
        grads = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip_grad_norm, norm)
        return norm


def move_batch(batch: Batch, device: torch.device, channels_last: bool) -> dict[str, Tensor]:
    """Return the batch on `device`; images of four dims as NHWC where asked.

    Copies from pinned memory do not block; `index` stays on the host, where it is used.
    """
    moved = {}
    for name, value in batch.items():
        if name == "index":
            moved[name] = value
        elif channels_last and value.ndim == 4:
            moved[name] = value.to(device, memory_format=torch.channels_last, non_blocking=True)
        else:
            moved[name] = value.to(device, non_blocking=True)
    return moved
