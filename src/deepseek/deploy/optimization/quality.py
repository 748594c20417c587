"""How good a candidate is, by the metric of the model's task, and how sure that is.

Every metric is a function of sums over samples (`Metric`). A candidate hands back the sums of
small groups of samples; groups drawn with replacement, the same for the original and the
candidate, tell how far the drop may be off (paired bootstrap; Efron and Tibshirani 1993).

Shapes: N samples, G groups, S sums of a metric, R draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek.datasets import DataSpec
from deepseek.deploy.report.quantity import is_higher_better
from deepseek.errors import CheckpointError, ConfigError, DataError
from deepseek.models.joint_outputs import is_number
from deepseek.trainer.metrics import Mean, Metric
from deepseek.trainer.regression import RegressionTask
from deepseek.trainer.task import Batch, Task, resolve_task

NUM_GROUPS = 500
NUM_DRAWS = 1000
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Quality:
    """What a candidate reaches.

    Attributes:
        value: of the metric.
        drop: how much worse than the original it is: points of a share; of what is none, such as a
            loss, relative to the original. Below 0 it is better.
        interval: in which the drop is with 95 %.
    """

    value: float
    drop: float
    interval: tuple[float, float]


class AgreementTask(Task):
    """No labels: what the original says is right.

    Logits (B, C), of tokens (B, T, C) or of voxels (B, C, ...), or vectors (B, D).
    """

    higher_is_better = True

    def __init__(self, num_classes: int | None) -> None:
        self.monitor = "val_cosine" if num_classes is None else "val_agreement"

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the summed squared difference."""
        return (outputs.float() - batch["targets"]).square().sum()

    def new_metrics(self) -> dict[str, Metric]:
        """Share of samples, tokens or voxels with the same class; mean cosine."""
        return {"agreement": Mean(), "cosine": Mean()}

    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch."""
        found, expected = outputs.float(), batch["targets"].float()
        classes = 2 if found.ndim == 3 else 1
        is_same = found.argmax(classes) == expected.argmax(classes)
        metrics["agreement"].update(is_same.sum(), is_same.numel())
        cosine = torch.cosine_similarity(found.flatten(1), expected.flatten(1))
        metrics["cosine"].update(cosine.sum(), len(found))

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the outputs."""
        return {"outputs": outputs.float()}


def task_of(spec: DataSpec, num_classes: int | None, has_labels: bool) -> Task:
    """Return what is measured: the task of the data, or agreement with the original.

    One output is no choice between classes: it is compared as the number that it is.
    """
    if has_labels:
        return resolve_task("auto", spec, 0.0)
    return RegressionTask() if is_number(spec) or num_classes == 1 else AgreementTask(num_classes)


def metric_of(task: Task, metric: str) -> str:
    """Return the name of a metric of a task; `auto`: the one its training watches.

    Raises:
        ConfigError: the task has no such metric.
    """
    name = task.monitor.removeprefix("val_") if metric == "auto" else metric
    if name not in task.new_metrics():
        raise ConfigError(
            f"metric={metric!r} is not one of this model's task",
            fix=f"choose one of: {', '.join(task.new_metrics())}",
        )
    return name


def is_share(name: str) -> bool:
    """Return whether a metric is a share, to be as large as possible; else as small."""
    return is_higher_better(name) or name in ("agreement", "cosine", "score")


def sum_by_group(
    compute: Callable[[Tensor], Tensor],
    read: Callable[[int, int], dict[str, Tensor]],
    task: Task,
    metric: str,
    num_samples: int,
    batch_size: int,
    by_task: Callable[[Tensor], dict[str, Tensor]] | None = None,
) -> Tensor:
    """Return the sums of a metric over groups of samples, (G, S) float64.

    Args:
        compute: the model, from inputs (B, ...) to outputs.
        read: returns `inputs` and `targets` of samples from start to stop.
        task: what they mean.
        metric: a name of its metrics.
        num_samples: N.
        batch_size: B; where it does not divide N the last is smaller.
        by_task: of a model of several tasks, from joined outputs to those of each.

    Raises:
        CheckpointError: an output is not finite.
    """
    num_batches = -(-num_samples // batch_size)
    per_batch = max(1, min(batch_size, NUM_GROUPS // num_batches))
    found = []
    for start in range(0, num_samples, batch_size):
        stop = min(start + batch_size, num_samples)
        batch = read(start, stop)
        outputs = compute(batch["inputs"])
        if not torch.isfinite(outputs).all():
            raise CheckpointError(
                "an output is not a finite number", fix="use another runtime or precision"
            )
        parts = min(per_batch, stop - start)
        split = {key: tensor.tensor_split(parts) for key, tensor in batch.items()}
        for at, piece in enumerate(outputs.tensor_split(parts)):
            metrics = task.new_metrics()
            own: Any = piece if by_task is None else by_task(piece)
            task.update_metrics(metrics, own, {key: split[key][at] for key in split})
            found.append(metrics[metric].sums())
    return torch.tensor(found, dtype=torch.float64)


def compare(task: Task, name: str, base: Tensor, own: Tensor) -> Quality:
    """Return what sums (G, S) of a candidate say beside those of the original."""
    generator = torch.Generator().manual_seed(0)
    num_groups = len(base)
    drawn = torch.randint(num_groups, (NUM_DRAWS, num_groups), generator=generator)
    weights = torch.zeros(NUM_DRAWS, num_groups, dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    rows = [(weights @ base, weights @ own)]
    drops = torch.tensor(
        [_drop(task, name, one, other) for one, other in zip(*rows[0], strict=True)],
        dtype=torch.float64,
    )
    finite = drops[drops.isfinite()]
    if not len(finite):
        raise DataError(
            f"{name} is no number: the outputs to be reached are alike in all samples",
            fix="give more samples, or labelled ones",
        )
    low, high = torch.quantile(finite, torch.tensor(_INTERVAL).double()).tolist()
    total, own_total = base.sum(0), own.sum(0)
    return Quality(
        _compute(task, name, own_total), _drop(task, name, total, own_total), (low, high)
    )


def _drop(task: Task, name: str, base: Tensor, own: Tensor) -> float:
    before, after = _compute(task, name, base), _compute(task, name, own)
    return before - after if is_share(name) else (after - before) / max(abs(before), 1e-12)


def _compute(task: Task, name: str, sums: Tensor) -> float:
    metric = task.new_metrics()[name]
    metric.take_sums(sums.tolist())
    return metric.compute()
