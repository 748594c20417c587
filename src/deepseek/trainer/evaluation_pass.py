"""The model over a data set, in eval mode: outputs where they are, metrics everywhere."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepseek.datasets import DataSpec
from deepseek.models.sliding_window import SlidingWindow
from deepseek.models.table_model import inputs_of
from deepseek.models.volume_segmenter import takes_volumes
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.world import World
from deepseek.trainer.evaluation_part import EvaluationPart
from deepseek.trainer.metrics import Metric
from deepseek.trainer.micro_batches import MicroBatches, move_batch, split_batch
from deepseek.trainer.precision import Precision
from deepseek.trainer.task import Batch, Task

if TYPE_CHECKING:
    from deepseek.trainer.step import TrainStep


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name, and what the task predicts per sample (and `index`) on the host."""

    metrics: dict[str, float]
    samples: dict[str, Tensor]


def evaluate(
    parallel: ParallelModel,
    batches: Iterable[Batch],
    task: Task,
    precision: Precision,
    channels_last: bool,
    keeps_samples: bool = False,
    check: Callable[[], None] = lambda: None,
    done: EvaluationPart | None = None,
    num_parts: int = 1,
) -> Evaluation:
    """Run the model over `batches` in eval mode; the mode it was in is restored.

    On several ranks each has its part of every batch; metrics and samples are those of all.
    `check` is called before each batch; what it raises ends the evaluation. `done` has what an
    evaluation that was interrupted has found of the batches before; of one process alone.
    `num_parts` is into how many each batch is cut, where memory is too short for the whole.
    """
    world = parallel.world
    was_training = parallel.engine.training
    parallel.train(False)
    metrics = task.new_metrics()
    kept: dict[str, list[Tensor]] = {}
    if done is not None:
        done.restore(metrics, kept)
    # what fully_shard gathers in inference mode could not be used in training again
    without_graph = torch.no_grad() if world.is_distributed else torch.inference_mode()
    try:
        with without_graph:
            for batch in batches:
                world.mark("evaluation")
                check()
                for piece in _cut(batch, num_parts, world.is_distributed):
                    for outputs, part in _outputs(parallel, piece, precision, channels_last):
                        task.update_metrics(metrics, outputs, part)
                        if keeps_samples:
                            rows = {**task.predictions(outputs, part), "index": part["index"]}
                            for name, value in rows.items():
                                kept.setdefault(name, []).append(value.cpu())
                if done is not None:
                    done.note(metrics, kept)
    finally:
        parallel.train(was_training)
        parallel.reshard()
    samples = {name: torch.cat(values) for name, values in kept.items()}
    if world.is_distributed:
        _add_up(world, metrics)
        samples = _collect(world, samples) if keeps_samples else {}
    return Evaluation({name: metric.compute() for name, metric in metrics.items()}, samples)


def count_parts(step: "TrainStep", batch_size: int) -> int:
    """Return into how many parts each rank cuts its share of a batch, so that they fit into memory.

    Args:
        step: whose micro-batches fit.
        batch_size: samples of a batch, over all ranks.
    """
    if step.parallel.pipeline is not None:
        return 1  # which cuts it itself
    share = -(-batch_size // step.parallel.world.plan.num_shares)
    return -(-share // step.micro_batch_size)


def _cut(batch: Batch, num_parts: int, keeps_empty: bool) -> Iterator[Batch]:
    """Yield the parts of a batch; with empty ones as many on every rank, which compute in step."""
    if num_parts == 1:
        yield batch
        return
    count = len(batch["targets"]) if batch else 0
    parts = list(split_batch(batch, -(-count // num_parts))) if count else []
    yield from parts
    if keeps_empty:
        yield from ({} for _ in range(num_parts - len(parts)))


def _outputs(
    parallel: ParallelModel, batch: Batch, precision: Precision, channels_last: bool
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield outputs and what they are of, on the one rank of those with the same that counts."""
    world, micro_batches = parallel.world, MicroBatches(parallel.engine, parallel)
    speaks = world.speaks_for_outputs and world.coordinate("cp") == 0
    if parallel.pipeline is not None:
        on_device = move_batch(batch, world.device, channels_last)
        parts, inputs = micro_batches.fill(on_device)
        found: list[tuple[Tensor, Batch]] = []

        def take(logits: Tensor, number: int) -> None:
            part = parts[number]
            whole = parallel.whole_outputs(logits, inputs)
            if speaks and part and len(part["targets"]):
                found.append((whole[: len(part["targets"])], part))

        with precision.autocast():
            parallel.pipeline.predict(inputs, take)
        yield from found
        return
    spec = parallel.engine.spec
    if spec is not None and takes_volumes(spec):
        for volume in _window_by_window(parallel, batch, spec, precision):
            if speaks:
                yield volume
        return
    on_device = move_batch(batch or micro_batches.empty(), world.device, channels_last)
    with precision.autocast():
        outputs = parallel.engine(inputs_of(on_device))
    if world.is_distributed and "inputs" in on_device:
        outputs = parallel.whole_outputs(outputs, on_device["inputs"])
    if batch and speaks:
        yield outputs, on_device


def _window_by_window(
    parallel: ParallelModel, batch: Batch, spec: DataSpec, precision: Precision
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield the outputs of each volume of a batch, without what it was filled up with.

    Windows are as large as the samples of training.
    """
    world, shape = parallel.world, spec.fields["inputs"].shape

    def forward(windows: Tensor) -> Tensor:
        world.note_progress()
        with precision.autocast():
            outputs = parallel.engine(windows)
        return parallel.whole_outputs(outputs, windows) if world.is_distributed else outputs

    sliding = SlidingWindow(forward, shape[1:], device=world.device)
    filled = batch["inputs"].shape[2:] if batch else ()
    sizes = batch["sizes"].tolist() if "sizes" in batch else [filled] * len(batch.get("inputs", ()))
    missing = 0
    if world.is_distributed:
        # asked before the first window, behind which ranks gather each other's weights
        count = sum(sliding.count_batches(size) for size in sizes)
        missing = max(world.exchange(count)) - count
    for number, size in enumerate(sizes):
        inside = tuple(slice(0, extent) for extent in size)
        inputs = batch["inputs"][(slice(number, number + 1), slice(None), *inside)]
        targets = batch["targets"][(slice(number, number + 1), *inside)].to(world.device)
        outputs = sliding(inputs.to(world.device))
        yield outputs, {**_rest(batch, number), "inputs": inputs, "targets": targets}
    for _ in range(missing):
        forward(torch.zeros((1, *shape), device=world.device))


def _rest(batch: Batch, number: int) -> Batch:
    return {
        name: value[number : number + 1]
        for name, value in batch.items()
        if name not in ("inputs", "targets", "sizes")
    }


def _add_up(world: World, metrics: dict[str, Metric]) -> None:
    """Add the sums of all ranks, in one collective with the same keys on each."""
    names = sorted(metrics)
    own = {name: metrics[name].sums() for name in names}
    added = iter(world.agree([number for name in names for number in own[name]]))
    for name in names:
        metrics[name].take_sums([next(added) for _ in own[name]])


def _collect(world: World, samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the samples of all ranks, in the order of the data set."""
    known = world.exchange(
        {n: [list(t.shape[1:]), str(t.dtype).removeprefix("torch.")] for n, t in samples.items()}
    )
    described = next((each for each in known if each), {})
    found = {}
    for name, (shape, dtype) in sorted(described.items()):
        empty = torch.empty((0, *shape), dtype=getattr(torch, dtype))
        found[name] = world.gather_rows(samples.get(name, empty).contiguous())
    if "index" not in found:
        return found
    order = found["index"].argsort(stable=True)
    return {name: rows[order] for name, rows in found.items()}
