"""One optimizer step: micro-batches, autocast, backward, clipping, update.

```
accumulate(batch)   forward and backward of every micro-batch; may be abandoned at any point
update(...)         judged first, then clipping, optimizer, moving average; never abandoned
```
The loss of every micro-batch is divided by the count of items of the *whole* step, so that
accumulated gradients equal those of the large batch, also when the last micro-batch is smaller or
samples differ in length.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.trainer.boundary import Boundary
from deepseek.trainer.clock import Clock
from deepseek.trainer.ema import ExponentialMovingAverage
from deepseek.trainer.graph import StepGraph
from deepseek.trainer.guard import BadStep, Guard
from deepseek.trainer.out_of_memory import is_out_of_memory
from deepseek.trainer.precision import Precision
from deepseek.trainer.schedule import Schedule
from deepseek.trainer.task import Batch, Task

MIN_SCALE = 1.0  # what overflows in fp16 without being scaled up is not the scale's fault


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind.

    Attributes:
        loss_sum: scalar tensor on the device, over `num_items` items.
        num_items: what the loss is a mean over.
        num_samples: in the batch.
        lr: learning rate of the update.
        grad_norm: L2 norm of the gradient before clipping, on the device; `None` where unknown.
        bad: what was wrong; then nothing was updated.
    """

    loss_sum: Tensor
    num_items: int
    num_samples: int
    lr: float
    grad_norm: Tensor | None
    bad: BadStep | None = None


class TrainStep:
    """Takes one batch through forward, backward and update.

    Args:
        engine: the model, on its device.
        task: gives the loss.
        optimizer: a bound torch optimizer.
        schedule: gives the learning rate of each step.
        precision: the compute dtype.
        boundary: keeps what a step changes before its update.
        guard: judges a step before its update.
        ema: follows the weights, or `None`.
        graph: computes the loss of a micro-batch.
        micro_batch_size: samples of a forward pass; halved where memory runs out.
        clip_grad_norm: largest L2 norm of the gradient, or `None`.
        keep_graph: retain the graphs of all micro-batches until the update.
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
        boundary: Boundary,
        guard: Guard,
        ema: ExponentialMovingAverage | None,
        graph: StepGraph,
        micro_batch_size: int,
        clip_grad_norm: float | None,
        keep_graph: bool,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self.engine = engine
        self.task = task
        self.optimizer = optimizer
        self.schedule = schedule
        self.precision = precision
        self.boundary = boundary
        self.guard = guard
        self.ema = ema
        self.graph = graph
        self.micro_batch_size = micro_batch_size
        self.clip_grad_norm = clip_grad_norm
        self.keep_graph = keep_graph
        self.device = device
        self.channels_last = channels_last
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.needs_scaler)
        self.on_halved: Callable[[int], None] = lambda size: None
        self.clock: Clock = Clock()
        self._parameters = [p for p in engine.parameters() if p.requires_grad]

    # -- forward and backward ----------------------------------------------------------------

    def accumulate(self, batch: Batch, check: Callable[[], None] = lambda: None) -> Tensor:
        """Add the gradient of a batch to `.grad` and return the summed loss, on the device.

        Where memory runs out, the micro-batch is halved and the batch begun again, as if it had
        never been tried; `on_halved` is told the new size.

        Args:
            batch: `inputs` (B, ...), `targets` (B, ...), still on the host.
            check: called between micro-batches; what it raises abandons the step.

        Raises:
            ConfigError: a single sample does not fit into memory.
        """
        while True:
            try:
                return self.accumulate_once(batch, check)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                shortage = str(error).splitlines()[0] if str(error) else "out of memory"
            # outside `except`: the traceback holds the tensors of the failed pass
            self._halve(len(batch["targets"]), shortage)

    def accumulate_once(self, batch: Batch, check: Callable[[], None] = lambda: None) -> Tensor:
        """As `accumulate`, but a lack of memory is left to the caller."""
        num_items = max(1, self.task.count_items(batch))
        loss_sum: Tensor | None = None
        graphs: list[Tensor] = []
        for micro_batch in self.split(batch):
            check()
            with self.clock.phase("data"):
                on_device = move_batch(micro_batch, self.device, self.channels_last)
            with self.clock.phase("forward"), self.precision.autocast():
                micro_loss = self.graph.forward(on_device, self.micro_batch_size)
            with self.clock.phase("backward"):
                self._backward(micro_loss / num_items)
            if self.keep_graph:
                graphs.append(micro_loss)
            detached = micro_loss.detach()
            loss_sum = detached if loss_sum is None else loss_sum + detached
        return loss_sum if loss_sum is not None else torch.zeros(())

    def split(self, batch: Batch) -> Iterator[Batch]:
        """Cut a batch into parts of `micro_batch_size` samples, the last one smaller."""
        size, num_samples = self.micro_batch_size, len(batch["targets"])
        if num_samples <= size:
            yield batch
            return
        for start in range(0, num_samples, size):
            yield {name: value[start : start + size] for name, value in batch.items()}

    def _backward(self, loss: Tensor) -> None:
        if self.precision.needs_scaler:
            loss = self.scaler.scale(loss)
        self.graph.backward(loss, retain_graph=self.keep_graph)

    def _halve(self, num_samples: int, shortage: str) -> None:
        if min(self.micro_batch_size, num_samples) == 1:
            raise ConfigError(
                f"one sample alone does not fit into memory: {shortage}",
                fix="use smaller inputs, a smaller model, or precision=bf16",
            )
        self.abandon()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        too_large = min(self.micro_batch_size, num_samples)
        while self.micro_batch_size >= too_large:
            self.micro_batch_size = -(-self.micro_batch_size // 2)
        self.on_halved(self.micro_batch_size)

    def shorten(self, batch: Batch, length: int) -> Batch:
        """Cut the sequences of a batch, (B, T) and more dims, to their first `length` tokens."""
        self.graph.sample_shape = (length,)
        return {
            name: value[:, :length] if value.ndim >= 2 and name != "index" else value
            for name, value in batch.items()
        }

    def abandon(self) -> None:
        """Undo an unfinished `accumulate`: no gradient, buffers and generators as before."""
        self.optimizer.zero_grad(set_to_none=True)
        self.boundary.rewind()

    # -- update ------------------------------------------------------------------------------

    def update(
        self,
        batch: Batch,
        loss_sum: Tensor,
        step: int,
        replayed: BadStep | None = None,
        lr: float | None = None,
    ) -> StepResult:
        """Update the model once, unless the step is bad. Waits for the device.

        Args:
            batch: what `accumulate` was given.
            loss_sum: what it returned.
            step: number of the update, from 0; sets the learning rate.
            replayed: treat the step as bad, as it was when it was first taken.
            lr: learning rate of the update; by the schedule where it is not given.
        """
        num_items = self.task.count_items(batch)
        lr = self.schedule.lr(step) if lr is None else lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.precision.needs_scaler:
            self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self._parameters if p.grad is not None]
        norm = total_norm(grads)
        bad = replayed or self.guard.judge(
            float(loss_sum) / max(1, num_items),
            float(norm),
            batch,
            gradient_may_overflow=self._may_overflow(),
        )
        if bad is None:
            try:
                self._apply(norm, step)
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise ConfigError(
                        "the optimizer's state does not fit into memory beside weights and"
                        f" gradients: {error}",
                        fix="use an optimizer with less state (sgd, lion), or a smaller model",
                    ) from error
                raise
        else:
            self.boundary.rewind_buffers()
            if self.precision.needs_scaler:
                self.scaler.update(self.scaler.get_scale())  # forget this step's unscaling
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss_sum, num_items, len(batch["targets"]), lr, norm, bad)

    def _may_overflow(self) -> bool:
        """Return whether an infinite gradient only says that its scale was too large."""
        return self.precision.needs_scaler and self.scaler.get_scale() >= MIN_SCALE

    def _apply(self, norm: Tensor, step: int) -> None:
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip_grad_norm, norm)
        if self.precision.needs_scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.guard.note_update()
        if self.ema is not None:
            self.ema.update(step)


def total_norm(grads: list[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together, as a scalar on their device.

    On a CPU scalar products take half the time of norms.
    """
    if grads and grads[0].device.type == "cpu" and all(grad.is_contiguous() for grad in grads):
        flat = [grad.view(-1) for grad in grads]
        return torch.stack([torch.dot(each, each) for each in flat]).sum().sqrt()
    # torch.nn.utils.get_total_norm without its grouping by device, which costs as much again
    norms = torch._foreach_norm(grads)  # pyright: ignore[reportPrivateImportUsage]
    return torch.linalg.vector_norm(torch.stack(norms))


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
