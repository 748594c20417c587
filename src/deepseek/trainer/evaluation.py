"""Evaluation: metrics over a data set, and what the report shows of single samples."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from deepseek.datasets import DataLoader, ImageDataset, infer_spec
from deepseek.models import ModelEngine
from deepseek.trainer.device import resolve_device
from deepseek.trainer.precision import Precision, resolve_precision
from deepseek.trainer.run_folder import RunFolder
from deepseek.trainer.step import move_batch
from deepseek.trainer.task import Batch, Task, resolve_task

NUM_SHOWN = 12
THUMBNAIL_PIXELS = 128


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name, and what the task predicts per sample (and `index`) on the host."""

    metrics: dict[str, float]
    samples: dict[str, Tensor]


@torch.inference_mode()
def evaluate(
    engine: ModelEngine,
    batches: Iterable[Batch],
    task: Task,
    precision: Precision,
    device: torch.device,
    channels_last: bool,
    keeps_samples: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Run the model over `batches` in eval mode; the mode it was in is restored.

    `check` is called before each batch; what it raises ends the evaluation.
    """
    was_training = engine.training
    engine.eval()
    metrics = task.new_metrics()
    kept: dict[str, list[Tensor]] = {}
    try:
        for batch in batches:
            check()
            on_device = move_batch(batch, device, channels_last)
            with precision.autocast():
                outputs = engine(on_device["inputs"])
            task.update_metrics(metrics, outputs, on_device)
            if keeps_samples:
                rows = {**task.predictions(outputs, on_device), "index": batch["index"]}
                for name, value in rows.items():
                    kept.setdefault(name, []).append(value.cpu())
    finally:
        engine.train(was_training)
    return Evaluation(
        {name: metric.compute() for name, metric in metrics.items()},
        {name: torch.cat(values) for name, values in kept.items()},
    )


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
        precision: `auto`, `fp32`, `bf16`, `fp16`.
    """
    where = resolve_device(device)
    loader = evaluation_loader(data, batch_size, num_workers)
    task = resolve_task("auto", infer_spec(loader.dataset), 0.0)
    engine.to(where)
    chosen = resolve_precision(precision, where)
    return evaluate(engine, loader, task, chosen, where, False).metrics


def evaluation_loader(data, batch_size: int, num_workers: int | Literal["auto"]) -> DataLoader:
    """Return a loader that gives every sample once, in order."""
    dataset = data.dataset if isinstance(data, DataLoader) else data
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
