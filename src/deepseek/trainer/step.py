"""One optimizer step: micro-batches, autocast, backward, clipping, update.

```
accumulate(batch)   forward and backward of every micro-batch; may be abandoned at any point
measure(...)        loss and gradient norm over all ranks, in one all-reduce; changes nothing
update(...)         judged first, then clipping, optimizer, moving average; never abandoned
```
The loss of every micro-batch is divided by the count of items of the *whole* step over all ranks,
so that gradients equal those of the large batch on one device, also when the last micro-batch is
smaller, a rank has fewer samples or samples differ in length.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.memory.weightwise import BackwardUpdate, WeightwiseOptimizer
from deepseek.models import ModelEngine
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.catch_up import CatchUp
from deepseek.trainer.boundary import Boundary
from deepseek.trainer.clock import Clock
from deepseek.trainer.ema import ExponentialMovingAverage
from deepseek.trainer.gradient_norm import total_norm
from deepseek.trainer.graph import StepGraph
from deepseek.trainer.guard import BadStep, Guard
from deepseek.trainer.joint_loss import JointLoss
from deepseek.trainer.layer_pace import set_rates
from deepseek.trainer.micro_batches import MicroBatches, move_batch, shorten_batch
from deepseek.trainer.out_of_memory import (
    check_can_halve,
    first_line,
    free_cache,
    is_out_of_memory,
    refuse_update_in_backward,
)
from deepseek.trainer.precision import Precision
from deepseek.trainer.schedule import Schedule
from deepseek.trainer.step_errors import explain_step
from deepseek.trainer.step_values import Accumulated, Measured, StepResult
from deepseek.trainer.task import Batch, Task

MIN_SCALE = 1.0  # what overflows in fp16 without being scaled up is not the scale's fault


class TrainStep:
    """Takes one batch through forward, backward and update.

    Args:
        engine: the model, on its device.
        task: gives the loss.
        optimizer: a bound torch optimizer.
        weightwise: takes its step weight by weight; `None`: all at once.
        in_backward: takes it in the backward pass, or `None`.
        schedule: gives the learning rate of each step.
        precision: the compute dtype.
        parallel: the model as this rank computes it.
        boundary: keeps what a step changes before its update.
        guard: judges a step before its update.
        ema: follows the weights, or `None`.
        graph: computes the loss of a micro-batch.
        micro_batch_size: samples of a forward pass; halved where memory runs out.
        clip_grad_norm: largest L2 norm of the gradient, or `None`.
        keep_graph: retain the graphs of all micro-batches until the update.
        device: where batches go.
        channels_last: store images as NHWC.
        joint: weighs the losses of several tasks; `None`: there is one.
    """

    def __init__(
        self,
        engine: ModelEngine,
        task: Task,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        precision: Precision,
        *,
        parallel: ParallelModel,
        boundary: Boundary,
        guard: Guard,
        ema: ExponentialMovingAverage | None,
        graph: StepGraph,
        micro_batch_size: int,
        clip_grad_norm: float | None,
        keep_graph: bool,
        device: torch.device,
        channels_last: bool,
        weightwise: WeightwiseOptimizer | None = None,
        in_backward: BackwardUpdate | None = None,
        joint: JointLoss | None = None,
    ) -> None:
        self.engine = engine
        self.task = task
        self.optimizer = optimizer
        self.weightwise = weightwise
        self.in_backward = in_backward
        self.schedule = schedule
        self.precision = precision
        self.parallel = parallel
        self.boundary = boundary
        self.guard = guard
        self.ema = ema
        self.graph = graph
        self.micro_batch_size = micro_batch_size
        self.clip_grad_norm = clip_grad_norm
        self.keep_graph = keep_graph
        self.device = device
        self.channels_last = channels_last
        self.joint = joint
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.needs_scaler)
        self.on_halved: Callable[[int], None] = lambda size: None
        self.look_at_clock: Callable[[], float] = lambda: 0.0
        self.clock: Clock = Clock()
        self._world = parallel.world
        self._parameters = [weight.local for weight in parallel.weights.trained]
        self._micro_batches = MicroBatches(engine, parallel)
        self._catch_up = CatchUp(parallel)
        self._shortage: str | None = None  # of memory on this rank, in this step

    # -- forward and backward ----------------------------------------------------------------

    def accumulate(
        self,
        batch: Batch,
        check: Callable[[], None] = lambda: None,
        num_samples: int | None = None,
        lr: float = 0.0,
    ) -> Accumulated:
        """Add the gradient of a batch to `.grad` and return the summed loss, on the device.

        Where memory runs out, the micro-batch is halved and the batch begun again, as if it had
        never been tried; `on_halved` is told the new size. One of several ranks enters what the
        others wait for, and `measure` tells all that the step is to be taken again.

        Args:
            batch: `inputs` (B, ...), `targets` (B, ...), this rank's part, still on the host.
            check: called between micro-batches; what it raises abandons the step.
            num_samples: of the batch over all ranks; those of `batch` where not given.
            lr: learning rate, if the backward pass updates.

        Raises:
            ConfigError: a single sample does not fit into memory.
        """
        while True:
            try:
                if self.in_backward is None:
                    return self.accumulate_once(batch, check, num_samples)
                with self.in_backward.armed(lr):
                    accumulated = self.accumulate_once(batch, check, num_samples)
                self.guard.note_update()
                return accumulated
            except (RuntimeError, MemoryError, ValueError) as error:
                if not is_out_of_memory(error):
                    raise explain_step(error, self._world, len(batch.get("targets", ()))) from error
                shortage = first_line(error)
            # outside `except`: the traceback holds the tensors of the failed pass
            self._check_can_halve(len(batch.get("targets", ())), shortage, "beside its passes")
            self._halve(len(batch["targets"]))

    def accumulate_once(
        self,
        batch: Batch,
        check: Callable[[], None] = lambda: None,
        num_samples: int | None = None,
    ) -> Accumulated:
        """As `accumulate`, but a lack of memory is left to the caller."""
        if num_samples is None:
            num_samples = len(batch["targets"])
        if self.parallel.context is not None and batch:
            batch = self.parallel.context.cut_targets(dict(batch))
        if self.joint is not None:
            return self._accumulate_jointly(self.joint, batch, num_samples, check)
        items = self._world.start_sum_items(self.task.count_items(batch) if batch else 0)
        loss_sum = self.go_through(batch, num_samples, items.get, check)
        return Accumulated(loss_sum, items.get(), num_samples)

    def _accumulate_jointly(
        self, joint: JointLoss, batch: Batch, num_samples: int, check: Callable[[], None]
    ) -> Accumulated:
        num_parts = len(self._micro_batches.split(batch, self.micro_batch_size, num_samples))
        joint.begin(batch, num_parts, self.scaler)
        if joint.is_looking:
            self.go_through(batch, num_samples, lambda: joint.num_items, check)
            self.boundary.rewind()
            joint.look_again()
        self.go_through(batch, num_samples, lambda: joint.num_items, check)
        return Accumulated(joint.finish(), joint.num_items, num_samples)

    def go_through(
        self,
        batch: Batch,
        num_samples: int,
        num_items: Callable[[], int],
        check: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Take every micro-batch of this rank forward and backward; return the summed loss.

        Args:
            batch: this rank's part, its tokens cut where `cp` cuts them.
            num_samples: of the batch over all ranks.
            num_items: what the loss is divided by; asked before the first backward pass.
            check: called between micro-batches.
        """
        if self.parallel.pipeline is not None:
            return self._through_pipeline(batch, num_items)
        loss_sum: Tensor | None = None
        graphs: list[Tensor] = []
        self._shortage = None
        parts = self._micro_batches.split(batch, self.micro_batch_size, num_samples)
        for number, micro_batch in enumerate(parts, 1):
            check()
            self._world.note_progress()
            micro_loss = self._try(micro_batch, number == len(parts), num_items)
            if micro_loss is None:
                continue
            if self.keep_graph:
                graphs.append(micro_loss)
            detached = micro_loss.detach()
            loss_sum = detached if loss_sum is None else loss_sum + detached
        return loss_sum if loss_sum is not None else torch.zeros(())

    def _try(
        self, micro_batch: Batch, is_last: bool, num_items: Callable[[], int]
    ) -> Tensor | None:
        """Return the loss of a micro-batch; `None` if one of several ranks is out of memory."""
        if not self._world.is_distributed:
            return self._pass(micro_batch, is_last, num_items)
        self._catch_up.begin()
        if self._shortage is None:
            try:
                return self._pass(micro_batch, is_last, num_items)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                shortage = first_line(error)
            # outside `except`: the traceback holds the tensors of the failed pass
            self._check_can_halve(self.micro_batch_size, shortage, "")
            self._shortage = shortage
            free_cache(self.device)
        little = self._micro_batches.empty(min(2, self.micro_batch_size - 1))
        try:
            self._catch_up.finish(is_last, lambda: self._pass(little, is_last, num_items))
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                check_can_halve(1, self._world.rank, "", self._shortage)
            raise
        return None

    def _pass(self, micro_batch: Batch, is_last: bool, num_items: Callable[[], int]) -> Tensor:
        """Take a micro-batch forward and backward; return its loss."""
        with self.clock.phase("data"):
            micro_batch = self.graph.prepare(micro_batch)
            on_device = move_batch(micro_batch, self.device, self.channels_last)
        reduces = is_last and (self.joint is None or self.joint.reduces)
        with self.parallel.reduces_now(reduces):
            with (
                self.clock.phase("forward"),
                self.precision.autocast(),
                self.parallel.loss_context(),
            ):
                micro_loss = self.graph.forward(on_device, self.micro_batch_size)
            self._catch_up.enter_backward()
            with self.clock.phase("backward"), self.parallel.loss_context():
                self._backward(micro_loss, num_items())
        return micro_loss

    def _through_pipeline(self, batch: Batch, num_items: Callable[[], int]) -> Tensor:
        pipeline = self.parallel.pipeline
        if pipeline is None:
            raise RuntimeError("there is no pipeline")
        # by number: a schedule tries the loss once before its first step, to know the shapes
        losses: dict[int, Tensor] = {}
        with self.clock.phase("data"):
            on_device = move_batch(batch, self.device, self.channels_last)
            parts, inputs = self._micro_batches.fill(on_device)

        def loss_of(logits: Tensor, number: int) -> Tensor:
            loss = self.graph.loss_of_outputs(logits, parts[number])
            losses[number] = loss.detach()
            loss = loss * (self.parallel.gradient_factor / max(1, num_items()))
            return self.scaler.scale(loss) if self.precision.needs_scaler else loss

        with (
            self.clock.phase("forward"),
            self.precision.autocast(),
            self.parallel.loss_context(),
            self.graph.passing(),
        ):
            whole = self.graph.memory.recomputes_blocks
            pipeline.run(inputs, loss_of, goes_back_whole=whole)
        return sum(losses.values(), torch.zeros((), device=self.device))

    def _backward(self, loss_sum: Tensor | None, num_items: int) -> None:
        if self.joint is not None and loss_sum is not None:
            loss_sum = self.joint.combine(loss_sum, retain_graph=self.keep_graph)
        if loss_sum is None:
            return
        loss = loss_sum / max(1, num_items)
        if self.parallel.gradient_factor != 1.0:
            loss = loss * self.parallel.gradient_factor
        if self.precision.needs_scaler:
            loss = self.scaler.scale(loss)
        self.graph.backward(loss, retain_graph=self.keep_graph)

    def _check_can_halve(self, num_samples: int, shortage: str, where: str) -> None:
        if self.in_backward is not None:
            refuse_update_in_backward(shortage)
        apart = "" if self.joint is None else self.joint.why_alone()
        why_not = self._world.is_distributed and (self._catch_up.why_not() or apart or where)
        size = min(self.micro_batch_size, num_samples)
        check_can_halve(size, self._world.rank, why_not or "", shortage)

    def halve(self, num_samples: int) -> None:
        """Begin the step anew with smaller micro-batches; all ranks of a step that `ran_out`.

        Args:
            num_samples: of the batch over all ranks.
        """
        if self.precision.needs_scaler:
            self.scaler.update(self.scaler.get_scale())  # forget this step's unscaling
        share = -(-num_samples // self._world.plan.num_shares)
        tried = min(self.micro_batch_size, share)
        check_can_halve(tried, self._world.rank, "", self._shortage or "on another rank")
        self._halve(share)
        self._catch_up.renew()

    def _halve(self, num_samples: int) -> None:
        self.abandon()
        free_cache(self.device)
        too_large = min(self.micro_batch_size, num_samples)
        while self.micro_batch_size >= too_large:
            self.micro_batch_size = -(-self.micro_batch_size // 2)
        self.on_halved(self.micro_batch_size)

    def shorten(self, batch: Batch, length: int) -> Batch:
        """Cut the sequences of a batch, (B, T) and more dims, to their first `length` tokens."""
        self.graph.sample_shape = (length,)
        return shorten_batch(batch, length)

    def abandon(self) -> None:
        """Undo an unfinished `accumulate`: no gradient, buffers and generators as before."""
        self.parallel.weights.drop_gradients()
        self.boundary.rewind()

    def compute(
        self,
        batch: Batch,
        check: Callable[[], None],
        num_samples: int | None,
        lr: float,
        wants_stop: Callable[[], bool],
    ) -> Measured:
        """Accumulate and measure, and again with smaller micro-batches while a rank runs out.

        Args:
            batch: as `accumulate` takes it, and the three that follow.
            check: called between micro-batches.
            num_samples: of the batch over all ranks.
            lr: learning rate, if the backward pass updates.
            wants_stop: whether this rank wants the run to end; asked in between.
        """
        while True:
            accumulated = self.accumulate(batch, check, num_samples, lr)
            self._world.mark("the sum of loss and gradient norm")
            with self.clock.phase("optimizer"):
                measured = self.measure(accumulated, wants_stop())
            if not measured.ran_out:
                return measured
            self.halve(accumulated.num_samples)
            self._world.mark("forward and backward passes")

    # -- measure and update ------------------------------------------------------------------

    def measure(self, accumulated: Accumulated, wants_stop: bool = False) -> Measured:
        """Return loss and gradient norm over all ranks. Changes nothing but gradients' scale.

        Args:
            accumulated: what `accumulate` returned.
            wants_stop: whether this rank wants the run to end after the step.
        """
        updated, weights = self.in_backward, self.parallel.weights
        grads = self.parallel.take_gradients() if updated is None else []
        if self.precision.needs_scaler:
            self.scaler.unscale_(self.optimizer)
        if not self._world.is_distributed:
            norm = total_norm(grads) if updated is None else updated.sum_of_squares().sqrt()
            return self._measured_alone(accumulated, weights.norm_with_tables(norm), wants_stop)
        found = weights.sum_of_squares(total_norm) if updated is None else updated.sum_of_squares()
        squares = float(found)
        speaks = self._world.speaks_for_outputs
        sums = self._world.agree(
            [
                float(accumulated.loss_sum) * speaks,  # NaN counts wherever it is
                squares,
                float(self.guard.finds_damage()),
                float(wants_stop),
                float(self._shortage is not None),
                self.look_at_clock() if self._world.rank == 0 else 0.0,
            ]
        )
        norm = math.sqrt(sums[1]) if sums[1] >= 0 else math.nan
        if self.precision.needs_scaler and not math.isfinite(norm):
            for found in self.scaler._found_inf_per_device(self.optimizer).values():
                found.fill_(1.0)  # an overflow on one rank is one on all
        return Measured(
            accumulated,
            torch.tensor(sums[0], dtype=torch.float32),
            torch.tensor(norm, dtype=torch.float32),
            is_suspect=sums[2] > 0,
            wants_stop=sums[3] > 0,
            ran_out=sums[4] > 0,
            time_share=sums[5],
        )

    def _measured_alone(self, accumulated: Accumulated, norm: Tensor, wants_stop: bool) -> Measured:
        return Measured(
            accumulated, accumulated.loss_sum, norm, is_suspect=False, wants_stop=wants_stop,
            time_share=self.look_at_clock(),
        )  # fmt: skip

    def update(
        self,
        batch: Batch,
        measured: Measured,
        step: int,
        replayed: BadStep | None = None,
        lr: float | None = None,
    ) -> StepResult:
        """Update the model once, unless the step is bad. Waits for the device.

        Args:
            batch: what `accumulate` was given.
            measured: what `measure` returned.
            step: number of the update, from 0; sets the learning rate.
            replayed: treat the step as bad, as it was when it was first taken.
            lr: learning rate of the update; by the schedule where it is not given.
        """
        (_, num_items, num_samples), norm = measured.accumulated, measured.norm
        lr = self.schedule.lr(step) if lr is None else lr
        set_rates(self.optimizer, lr, step)
        loss_sum, size = measured.numbers()
        bad = replayed or self.guard.judge(
            loss_sum / max(1, num_items),
            size,
            batch,
            gradient_may_overflow=self._may_overflow(),
            is_suspect=measured.is_suspect,
        )
        if bad is None:
            try:
                self._apply(norm, size, step)
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise ConfigError(
                        "the optimizer's state does not fit into memory beside weights and"
                        f" gradients: {error}",
                        fix="use an optimizer with less state (adamw8bit, adafactor, lion, sgd),"
                        " offload=optimizer, param_dtype=bf16, or a smaller model",
                    ) from error
                raise
        else:
            self.boundary.rewind_buffers()
            if self.precision.needs_scaler:
                self.scaler.update(self.scaler.get_scale())  # forget this step's unscaling
        self.parallel.weights.drop_gradients()
        num_own = len(batch["targets"]) if batch else 0
        self._world.average(self.boundary.running_statistics(), num_own)
        return StepResult(
            measured.loss_sum, num_items, num_samples, lr, norm, bad, measured.wants_stop,
            {} if self.joint is None else self.joint.named_values(),
        )  # fmt: skip

    def _may_overflow(self) -> bool:
        """Return whether an infinite gradient only says that its scale was too large."""
        return self.precision.needs_scaler and self.scaler.get_scale() >= MIN_SCALE

    def _apply(self, norm: Tensor, size: float, step: int) -> None:
        if self.in_backward is None:
            self._update_weights(norm, size)
        self.parallel.weights.step_tables()
        self.guard.note_update()
        if self.joint is not None:
            self.joint.learn(self.optimizer.param_groups[0]["lr"])
        if self.ema is not None:
            self.ema.update(step)

    def _update_weights(self, norm: Tensor, size: float) -> None:
        if self.clip_grad_norm is not None and size > self.clip_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip_grad_norm, norm)
            self.parallel.weights.clip_tables(self.clip_grad_norm, norm)
        if self.precision.needs_scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.weightwise is not None:
            self.weightwise.step()
        else:
            self.optimizer.step()
