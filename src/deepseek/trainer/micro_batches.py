"""Micro-batches that are filled up or empty, where ranks must compute in step.

What was filled up is left out before the loss, so that it changes neither loss nor gradient.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from deepseek.datasets import FieldSpec
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.table_model import is_feature
from deepseek.parallel.apply import ParallelModel
from deepseek.trainer.task import Batch, Task


class MicroBatches:
    """Makes micro-batches of a given shape.

    Args:
        engine: whose spec says what a sample is.
        parallel: how many there are in a pipeline, and of which size.
    """

    def __init__(self, engine: ModelEngine, parallel: ParallelModel) -> None:
        self._engine = engine
        self._parallel = parallel

    def empty(self, count: int = 1) -> dict[str, Tensor]:
        """Return samples of zeros, without targets: they do not count."""
        spec = self._engine.spec
        if spec is not None and spec.features is not None:
            fields = {name: it for name, it in spec.fields.items() if is_feature(name)}
            return {name: _zeros(count, field) for name, field in fields.items()}
        return {"inputs": self._zeros(count)}

    def split(self, batch: Batch, size: int, num_samples: int) -> list[Batch]:
        """Return micro-batches of at most `size` samples, as many on every rank.

        Args:
            batch: this rank's part; may be empty.
            size: samples of a micro-batch.
            num_samples: of the batch over all ranks.
        """
        parts = list(split_batch(batch, size)) if batch else []
        world = self._parallel.world
        if world.is_distributed:
            share = -(-num_samples // world.plan.num_shares)
            missing = max(1, -(-share // size)) - len(parts)
            parts += [self.empty() for _ in range(missing)]
        return parts

    def _zeros(self, count: int) -> Tensor:
        spec = self._engine.spec
        if spec is None or "inputs" not in spec.fields:
            raise ConfigError(
                "a rank has no sample in this batch, and the data do not say what one is",
                fix="set drop_last=True in the DataLoader",
            )
        return _zeros(count, spec.fields["inputs"])

    def fill(self, batch: Batch) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Cut a batch into the micro-batches of the pipeline.

        Args:
            batch: this rank's part, on the device; may be empty.

        Returns:
            The samples of each micro-batch, and the inputs of all in a row, filled up.
        """
        pipeline = self._parallel.pipeline
        if pipeline is None:
            raise RuntimeError("there is no pipeline")
        size, count = pipeline.micro_batch_size, pipeline.num_micro_batches
        device = self._parallel.world.device
        inputs = batch["inputs"] if batch else self._zeros(0).to(device)
        if missing := size * count - len(inputs):
            zeros = inputs.new_zeros((missing, *inputs.shape[1:]))
            inputs = torch.cat([inputs, zeros])
        parts = [
            {name: value[start : start + size] for name, value in batch.items()}
            for start in range(0, size * count, size)
        ]
        return parts, inputs

    def loss(self, task: Task, logits: Tensor, part: Mapping[str, Tensor]) -> Tensor:
        """Return the summed loss of the samples of a micro-batch; zero without any."""
        num_samples = len(part["targets"]) if "targets" in part else 0
        if num_samples == 0:
            return self._parallel.whole_logits(logits).sum() * 0
        if num_samples < len(logits):
            logits = logits[:num_samples]
        loss = task.loss(logits, part)
        return loss.to_local() if isinstance(loss, DTensor) else loss


def _zeros(count: int, field: FieldSpec) -> Tensor:
    return torch.zeros((count, *field.shape), dtype=getattr(torch, field.dtype))


def split_batch(batch: Batch, size: int) -> Iterator[Batch]:
    """Cut a batch into parts of `size` samples, the last one smaller."""
    num_samples = len(batch["targets"])
    if num_samples <= size:
        yield batch
        return
    for start in range(0, num_samples, size):
        yield {name: value[start : start + size] for name, value in batch.items()}


def shorten_batch(batch: Batch, length: int) -> Batch:
    """Cut the sequences of a batch, (B, T) and more dims, to their first `length` tokens."""
    return {
        name: value[:, :length] if value.ndim >= 2 and name != "index" else value
        for name, value in batch.items()
    }


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
