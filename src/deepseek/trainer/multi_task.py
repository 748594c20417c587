"""Several tasks that one model learns together, each from the samples that have a label of it.

```
batch["targets"]          (B, N) bool: which tasks a sample has a label of, in the data's order
batch["targets.NAME"]     the labels of a task, as its own `Task` takes them
outputs[NAME]             what the head of a task returns
```
`deepseek.datasets.MultiTaskDataset` makes such batches, `deepseek.models.MultiHead` such outputs.

Shapes: B batch, N tasks.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deepseek.config import TrainerConfig
from deepseek.datasets import DataSpec
from deepseek.datasets.task_labels import has_label
from deepseek.errors import ConfigError
from deepseek.models.table_model import TableModel
from deepseek.trainer.class_weights import weigh_classes
from deepseek.trainer.metrics import Metric
from deepseek.trainer.segmentation import check_masks, choose_loss
from deepseek.trainer.task import Batch, Task, resolve_task
from deepseek.trainer.weighting import Weighting, make_weighting

Outputs = Mapping[str, Tensor]
ROWS = "rows."
"""Begins the field with the rows of a micro-batch that have a label of a task, int64."""


class MultiTask(Task):
    """A loss for each task, and a rule that makes one of them.

    The loss of a task in a step is the mean over its labels, however many there are: how often a
    task is drawn says from how many labels it learns, and what it weighs is the weighting's affair.

    Args:
        tasks: name -> what its labels mean; the names are those of the data and of the heads.
        weighting: a name of `WEIGHTINGS`, `{"name": "cagrad", "c": 0.4}`, or a `Weighting`.

    Raises:
        ConfigError: there are fewer than two tasks, or the weighting is not known.

    Example:
        ```python
        MultiTask({"sentiment": ClassificationTask(3), "score": RegressionTask()}, "uncertainty")
        ```
    """

    takes_parts = False

    def __init__(
        self, tasks: Mapping[str, Task], weighting: str | Mapping | Weighting = "equal"
    ) -> None:
        if len(tasks) < 2:
            raise ConfigError(f"there are {len(tasks)} tasks", fix="give two or more")
        self.tasks = dict(tasks)
        self.weighting = make_weighting(weighting)
        self._scored = [name for name, task in tasks.items() if task.higher_is_better]
        self.higher_is_better = len(self._scored) == len(self.tasks)
        self.monitor = "val_score" if self.higher_is_better else "val_loss"

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in their order."""
        return tuple(self.tasks)

    # -- training ----------------------------------------------------------------------------

    def place(self, device: torch.device) -> None:
        """Move what the tasks need."""
        for task in self.tasks.values():
            task.place(device)

    def count_labels(self, batch: Batch) -> list[int]:
        """Return what the loss of each task is a mean over, (N,). No device wait."""
        if not batch:
            return [0] * len(self.tasks)
        self._check(batch)
        return [
            self.tasks[name].count_items(part) if len(part["targets"]) else 0
            for name, part in self._parts(self.prepare(batch))
        ]

    def count_items(self, batch: Batch) -> int:
        """Return how many labels there are, of all tasks."""
        return sum(self.count_labels(batch))

    def losses(self, outputs: Outputs, batch: Batch) -> list[Tensor]:
        """Return the loss of each task, summed over its labels."""
        found = []
        for (name, part), rows in zip(self._parts(batch), self._all_rows(batch), strict=True):
            own = _rows(outputs[name], rows)
            # a task may not know what to make of no sample; its head has a gradient all the same
            found.append(self.tasks[name].loss(own, part) if len(own) else outputs[name].sum() * 0)
        return found

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the mean of the tasks' losses, times the count of labels.

        Training weighs `losses` itself.
        """
        counts = self.count_labels(batch)
        shares = [sum(counts) / max(1, count) / len(counts) for count in counts]
        losses = torch.stack(self.losses(outputs, batch))
        return losses @ losses.new_tensor(shares)

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        """Return a micro-batch with the rows that have a label of each task, while on the host.

        A device would be waited for.
        """
        # by name: the columns of "targets" are in the order of the data
        rows = {
            f"{ROWS}{name}": has_label(batch[f"targets.{name}"]).nonzero()[:, 0]
            for name in self.names
        }
        return {**batch, **rows}

    def _all_rows(self, batch: Batch) -> list[Tensor | None]:
        if f"{ROWS}{self.names[0]}" not in batch:
            batch = self.prepare(batch)
        num = len(batch["targets"])
        found = [batch[f"{ROWS}{name}"] for name in self.names]
        return [None if len(rows) == num else rows for rows in found]

    def _parts(self, batch: Batch) -> list[tuple[str, dict[str, Tensor]]]:
        """Return each task with the samples that have a label of it, as its own batch."""
        found = []
        for name, rows in zip(self.names, self._all_rows(batch), strict=True):
            part = {"targets": batch[f"targets.{name}"]}
            if "inputs" in batch:  # a teacher looks at them
                part["inputs"] = batch["inputs"]
            found.append((name, {field: _rows(value, rows) for field, value in part.items()}))
        return found

    def _check(self, batch: Batch) -> None:
        known = {name.removeprefix("targets.") for name in batch if name.startswith("targets.")}
        if known != set(self.tasks) or batch["targets"].shape[1:] != (len(self.tasks),):
            raise ConfigError(
                f"the data have labels of the tasks {sorted(known)}, MultiTask has"
                f" {sorted(self.tasks)}",
                fix="give both the same names, and data made by MultiTaskDataset",
            )

    # -- evaluation --------------------------------------------------------------------------

    def new_metrics(self) -> dict[str, Metric]:
        """Those of each task as `NAME_METRIC`; `loss`, the mean over tasks, and `score`.

        `score` is the mean of what each task is monitored by, where higher is better for one.
        """
        found = {
            f"{name}_{key}": metric
            for name, task in self.tasks.items()
            for key, metric in task.new_metrics().items()
        }
        losses = [found[f"{name}_loss"] for name in self.names if f"{name}_loss" in found]
        scores = [
            found[f"{name}_{self.tasks[name].monitor.removeprefix('val_')}"]
            for name in self._scored
        ]
        means: dict[str, Metric] = {"loss": MeanOf(losses)}
        if scores:
            means["score"] = MeanOf(scores)
        return {**means, **found}

    def update_metrics(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, metrics: dict[str, Metric], outputs: Outputs, batch: Batch
    ) -> None:
        """Add a batch."""
        for (name, part), rows in zip(self._parts(batch), self._all_rows(batch), strict=True):
            if len(part["targets"]):
                own = {
                    key.removeprefix(f"{name}_"): metric
                    for key, metric in metrics.items()
                    if key.startswith(f"{name}_")
                }
                self.tasks[name].update_metrics(own, _rows(outputs[name], rows), part)

    def predictions(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return those of each task as `NAME_KEY`, for every sample; labels that lack as they are.

        `has_label` (B, N) says which tasks a sample has a label of, in the order of `names`.
        """
        known = [has_label(batch[f"targets.{name}"]) for name in self.names]
        found: dict[str, Tensor] = {"has_label": torch.stack(known, 1)}
        for name, task in self.tasks.items():
            part = {"targets": batch[f"targets.{name}"]}
            if "inputs" in batch:
                part["inputs"] = batch["inputs"]
            predicted = task.predictions(outputs[name], part)
            found |= {f"{name}_{key}": value for key, value in predicted.items()}
        return found


class MeanOf(Metric):
    """The mean of other metrics; its sums are theirs.

    Args:
        metrics: those that are not a number (without a label) are left out.
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def update(self, total: Tensor, count: int) -> None:
        """Do nothing: the others are updated."""

    def compute(self) -> float:
        """Return the mean; NaN if none is a number."""
        found = [metric.compute() for metric in self._metrics]
        known = [value for value in found if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    def sums(self) -> list[float]:
        """Return those of all."""
        return [value for metric in self._metrics for value in metric.sums()]

    def take_sums(self, sums: Sequence[float]) -> None:
        """Replace those of all."""
        for metric in self._metrics:
            count = len(metric.sums())
            metric.take_sums(sums[:count])
            sums = sums[count:]


def _rows(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None else tensor[rows]


def make_task(spec: DataSpec, label_smoothing: float) -> Task:
    """Return the tasks that the data have labels of, all weighed alike."""
    return MultiTask(
        {name: resolve_task("auto", own, label_smoothing) for name, own in spec.tasks.items()}
    )


def resolve_run_task(
    task: str | Task, spec: DataSpec, config: TrainerConfig, module: nn.Module
) -> Task:
    """Return the task of a run, several with the weighting that its settings say.

    A model of tables may have a task of its own in training.

    Raises:
        ConfigError: `weighting`, `class_weights` or `loss` would be ignored, or is given twice.
        DataError: masks hold the background alone.
    """
    if task == "auto" and isinstance(module, TableModel):
        task = module.own_task or task
    resolved = resolve_task(task, spec, config.label_smoothing)
    resolved = weigh_classes(resolved, spec, config.class_weights)
    resolved = choose_loss(resolved, config.loss)
    check_masks(resolved, spec)
    if config.weighting == "auto":
        return resolved
    if not isinstance(resolved, MultiTask):
        raise ConfigError(
            f"weighting={config.weighting} would be ignored: there is one task",
            fix="leave it out",
        )
    if isinstance(task, MultiTask):
        raise ConfigError(
            f"weighting={config.weighting} beside a MultiTask, which has one already",
            fix="give it to one of the two",
        )
    return MultiTask(resolved.tasks, config.weighting)
