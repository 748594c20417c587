"""Pipeline parallelism: micro-batches on their way through stages on different ranks.

The schedules are torch's: GPipe (Huang et al. 2019, arXiv 1811.06965), 1F1B and interleaved 1F1B
(Narayanan et al. 2021, arXiv 2104.04473), breadth first (Lamy-Poirier 2023, arXiv 2211.05953) and
zero bubble (Qi et al. 2024, arXiv 2401.10241). Every rank of a pipeline reads the same batch: the
first stage takes its inputs, the last its targets, and what blocks need beside the stream (a mask)
each computes by itself.

All micro-batches have the shape of a full one, for the buffers between stages do: smaller ones are
filled up, and what was filled up never reaches the loss.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

from deepseek.models.classifier import BlockModel
from deepseek.parallel.plan import MULTI_STAGE, Plan
from deepseek.parallel.stages import Stage

SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved_1f1b": "Interleaved1F1B",
    "looped_bfs": "LoopedBFS",
    "interleaved_zero_bubble": "InterleavedZeroBubble",
    "zbv_zero_bubble": "ZBVZeroBubble",
}
# (logits of a micro-batch, its number) -> loss to go backward from
MicroLoss = Callable[[Tensor, int], Tensor]


class Pipeline:
    """Runs batches through the stages.

    Args:
        stages: of this rank, in order.
        numbers: of these stages, among all.
        plan: degrees and micro-batches.
        device: of this rank.
        group: the ranks of the pipeline.
        examples: what each stage takes and returns for a micro-batch; `None`: they are asked in the
            first step, which needs the other ranks.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        numbers: Sequence[int],
        plan: Plan,
        device: torch.device,
        group: dist.ProcessGroup | None,
        examples: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.stages = list(stages)
        self.num_micro_batches = plan.num_micro_batches
        self.micro_batch_size = plan.micro_batch_size
        self.is_first = any(stage.is_first for stage in stages)
        self.is_last = any(stage.is_last for stage in stages)
        self.on_batch: Callable[[Tensor], None] = lambda inputs: None
        self.on_pass: Callable[[], None] = lambda: None
        self._loss: MicroLoss = _no_loss
        self.numbers = list(numbers)
        takes, gives = zip(*examples, strict=True) if examples else ([None] * len(stages),) * 2
        made = [
            _TorchStage(
                stage, number, plan.num_stages, device, group=group, input_args=taken,
                output_args=given,
            )
            for stage, number, taken, given in zip(stages, numbers, takes, gives, strict=True)
        ]  # fmt: skip
        self._torchs = made
        cls = get_schedule_class(SCHEDULES[plan.settings.schedule])
        self._schedule = cls(
            made if plan.settings.schedule in MULTI_STAGE else made[0],
            plan.num_micro_batches,
            loss_fn=self._loss_of,
            scale_grads=False,  # the loss is divided by the count of items of the step
        )
        options = inspect.signature(self._schedule.step).parameters
        self._options = {"return_outputs": False} if "return_outputs" in options else {}

    def run(self, inputs: Tensor, loss: MicroLoss, *, goes_back_whole: bool = False) -> None:
        """Go forward and backward; gradients are added to `.grad`.

        Args:
            inputs: all micro-batches in a row, on the device.
            loss: called where the last stage is.
            goes_back_whole: a schedule that puts gradients of weights off takes them at once.
        """
        for stage in self._torchs:
            stage.goes_back_whole = goes_back_whole
        self._go(self._schedule.step, inputs, loss, **self._options)

    def predict(self, inputs: Tensor, take: Callable[[Tensor, int], None]) -> None:
        """Go forward only; `take` is given logits and number of each micro-batch at the end."""

        def keep(logits: Tensor, number: int) -> Tensor:
            take(logits, number)
            return logits.sum()

        with torch.no_grad():
            self._go(self._schedule.eval, inputs, keep)

    def _go(self, step: Callable, inputs: Tensor, loss: MicroLoss, **options: bool) -> None:
        self._loss = loss
        for stage in self._torchs:
            stage.on_pass = self.on_pass
        self.on_batch(inputs)
        model = self.stages[0].model
        beside = model.beside(inputs) if isinstance(model, BlockModel) else {}
        numbers = torch.arange(self.num_micro_batches) if self.is_last else None
        arguments = (inputs,) if self.is_first else ()
        try:
            step(*arguments, target=numbers, **beside, **options)
        finally:
            self._loss = _no_loss

    def _loss_of(self, logits: Tensor, number: Tensor) -> Tensor:
        # on paper there are no numbers, and every micro-batch is like the first
        return self._loss(logits, 0 if isinstance(number, FakeTensor) else int(number))

    def modules(self) -> list[nn.Module]:
        """Return the parts of the model on this rank."""
        return [stage.model for stage in self.stages]


class _TorchStage(PipelineStage):
    """Where torch before 2.13 does what a run must not notice, it is undone or left out.

    Attributes:
        goes_back_whole: gradients of weights are not put off. Where blocks are recomputed each
            weight's would recompute its block again: eight times in all for a GPT.
        on_pass: called before a micro-batch goes forward or backward.
    """

    goes_back_whole = False
    on_pass: Callable[[], None] = staticmethod(lambda: None)

    def forward_one_chunk(self, fwd_chunk_id: int, *arguments: Any, **options: Any) -> Any:
        """Go forward."""
        self.on_pass()
        return super().forward_one_chunk(fwd_chunk_id, *arguments, **options)

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Tensor | None = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:
        """Go backward, to the inputs alone unless it is `full_backward`."""
        self.on_pass()
        whole = full_backward or self.goes_back_whole
        super().backward_one_chunk(bwd_chunk_id, loss, whole, last_backward)

    def _shape_inference(self, *arguments: Any) -> Any:
        """It computes zeros to learn shapes: neither random state nor statistics move."""
        buffers = {name: buffer.clone() for name, buffer in self.submod.named_buffers()}
        gpus = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=gpus):
                return super()._shape_inference(*arguments)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            for name, buffer in self.submod.named_buffers():
                buffer.copy_(buffers[name])

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """In the order of a whole backward pass, not of the parameters.

        What is made again is asked of operations that come later then, and are not freed yet.
        """
        if self.goes_back_whole:
            return
        self.on_pass()
        groups = self.backward_state[bwd_chunk_id][1] or []
        groups.sort(key=_last_operation, reverse=True)
        super().backward_weight_one_chunk(bwd_chunk_id, last_backward=last_backward)

    def _validate_fwd_outputs(self, outputs: tuple[Tensor, ...]) -> None:
        """What the last stage returns goes nowhere: on paper its shape is not known."""
        if not self.is_last:
            super()._validate_fwd_outputs(outputs)  # pyright: ignore[reportAttributeAccessIssue]

    def _get_init_p2p_neighbors_ops(self) -> list[dist.P2POp]:
        """Gloo does not send from a rank to itself, which has two neighbours in a V."""
        own = dist.get_rank()
        return [op for op in super()._get_init_p2p_neighbors_ops() if op.peer != own]


def _last_operation(group: dict[str, Any]) -> int:
    """Return the number, in order of the forward pass, of the last operation that has a weight."""
    return max((node._sequence_nr() for node in group["intermediates"]), default=0)


def _no_loss(logits: Tensor, number: int) -> Tensor:
    return logits.sum()
