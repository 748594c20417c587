"""Evaluation of a model on its own, and what the report shows of single samples."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from deepseek.datasets import DataLoader, ImageDataset, VolumeDataset, infer_spec
from deepseek.datasets.evaluation_view import evaluation_dataset
from deepseek.models import ModelEngine
from deepseek.models.device import resolve_device
from deepseek.models.quantized import is_quantised
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.world import World
from deepseek.trainer.evaluation_part import EvaluationPart
from deepseek.trainer.evaluation_pass import Evaluation, evaluate
from deepseek.trainer.extra_metrics import MeasuredTask
from deepseek.trainer.memory_format import put_in_order
from deepseek.trainer.precision import resolve_precision
from deepseek.trainer.run_folder import RunFolder
from deepseek.trainer.task import Batch, Task, resolve_task

NUM_SHOWN = 12
THUMBNAIL_PIXELS = 128


def keep_min_score(task: Task, metrics: Mapping[str, float], engine: ModelEngine) -> None:
    """Let a model know from which score on it reports what it finds, by its evaluation."""
    if engine.spec is not None and task.min_score_metric is not None:
        value = metrics.get(task.min_score_metric, math.nan)
        engine.spec = replace(engine.spec, min_score=None if math.isnan(value) else value)


def evaluate_model(
    engine: ModelEngine,
    data,
    batch_size: int = 64,
    *,
    num_workers: int | Literal["auto"] = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, float]:
    """Return the metrics of a model on a data set.

    Args:
        engine: a model with its head built.
        data: a data set, or a bound `DataLoader`.
        batch_size: samples per forward pass.
        num_workers: processes that load data.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `auto`, `fp32`, `bf16`, `fp16`. `auto` is what the chip has; fp32 for a model
            that `quantize` has made, whose layers have their own.
    """
    return evaluate_samples(
        engine, data, batch_size, num_workers=num_workers, device=device, precision=precision,
        keeps_samples=False,
    ).metrics  # fmt: skip


def evaluate_samples(
    engine: ModelEngine,
    data,
    batch_size: int = 64,
    *,
    num_workers: int | Literal["auto"] = "auto",
    device: str = "auto",
    precision: str = "auto",
    keeps_samples: bool = True,
    metrics: Sequence[str] = (),
    on_batch: Callable[[int], None] = lambda done: None,
    done: EvaluationPart | None = None,
) -> Evaluation:
    """Return the metrics, and what the task predicts for each sample.

    Arguments are as above, and `metrics`: names of `EXTRA_METRICS`, beside those of the task;
    `on_batch`: told how many batches are done, of `count_batches`; `done`: what an evaluation that
    was interrupted has left.

    Raises:
        ConfigError: there is no such metric, or it says nothing of these data.
    """
    where = resolve_device(device)
    loader = evaluation_loader(data, batch_size, num_workers)
    task = resolve_task("auto", infer_spec(loader.dataset), 0.0)
    if metrics:
        task = MeasuredTask(task, metrics)
    engine.to(where)
    chosen = resolve_precision(precision_of(engine, precision), where)
    parallel = ParallelModel(engine, World.alone(where))
    if done is not None:
        done.move(loader)
    first = 1 if done is None else done.num_batches + 1
    batches = _watched(loader, on_batch, first)
    channels_last = put_in_order(engine, where)
    return evaluate(parallel, batches, task, chosen, channels_last, keeps_samples, done=done)


def precision_of(engine: ModelEngine, precision: str) -> str:
    """Return the precision that a model is evaluated in: of a quantised one `auto` is fp32."""
    return "fp32" if precision == "auto" and is_quantised(engine.changes) else precision


def count_batches(data, batch_size: int) -> int:
    """Return how many batches `evaluate_samples` computes."""
    return len(evaluation_loader(data, batch_size, 0))


def _watched(loader: DataLoader, on_batch: Callable[[int], None], first: int) -> Iterator[Batch]:
    for number, batch in enumerate(loader, first):
        yield batch
        on_batch(number)


def evaluation_loader(
    data, batch_size: int, num_workers: int | Literal["auto"], num_shares: int = 1
) -> DataLoader:
    """Return a loader that gives every sample once, in order.

    Args:
        data: a data set, or a bound `DataLoader`.
        batch_size: samples of a batch; of whole volumes, which may be large, one for each share.
        num_workers: processes that load data.
        num_shares: parts of a batch that are computed by different ranks.
    """
    dataset = evaluation_dataset(data)
    if isinstance(dataset, VolumeDataset):
        batch_size = num_shares
    recipe = DataLoader(batch_size=batch_size, shuffle=False, num_workers=num_workers)
    return recipe.bind(dataset)


def write_evaluation(
    folder: RunFolder, evaluation: Evaluation, step: int, class_names: tuple[str, ...], data
) -> None:
    """Write metrics, predictions and the pictures of the worst and best samples."""
    metrics = {f"val_{name}": value for name, value in evaluation.metrics.items()}
    folder.write_json("evaluation/metrics.json", {"step": step, **metrics})
    samples = evaluation.samples
    save_file(
        {
            name: (value.float() if value.is_floating_point() else value.long()).contiguous()
            for name, value in samples.items()
        },
        folder.evaluation / "predictions.safetensors",
    )
    if not {"loss", "probs", "targets"} <= samples.keys():
        return  # not a classification: there is no label to show beside a picture
    order = np.argsort(-samples["loss"].numpy(), kind="stable")
    shown = {"worst": order[:NUM_SHOWN], "best": order[::-1][:NUM_SHOWN]}
    described = {
        group: [
            _describe_sample(folder, f"{group}_{rank}", int(row), samples, class_names, data)
            for rank, row in enumerate(rows)
        ]
        for group, rows in shown.items()
    }
    folder.write_json("evaluation/samples.json", described)


def _describe_sample(
    folder: RunFolder,
    name: str,
    row: int,
    samples: dict[str, Tensor],
    class_names: tuple[str, ...],
    data,
) -> dict:
    probs, target = samples["probs"][row], int(samples["targets"][row])
    predicted = int(probs.argmax())
    described = {
        "index": int(samples["index"][row]),
        "target": class_names[target],
        "predicted": class_names[predicted],
        "prob": float(probs[predicted]),
        "loss": float(samples["loss"][row]),
    }
    if isinstance(data, ImageDataset):
        path = folder.evaluation / "samples" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        picture = data.image(described["index"]).copy()
        if max(picture.size) < THUMBNAIL_PIXELS:  # a digit of 8 pixels would be a speck
            factor = THUMBNAIL_PIXELS // max(picture.size)
            picture = picture.resize((picture.width * factor, picture.height * factor), 0)
        picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        picture.save(path)
        described["file"] = f"samples/{name}.png"
    return described
