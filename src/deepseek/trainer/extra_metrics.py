"""Metrics that are measured where they are asked for: they cost too much to be measured always."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor

from deepseek.registry import Registry
from deepseek.trainer.metrics import Metric
from deepseek.trainer.task import Batch, Task


class ExtraMetric(ABC):
    """Something that is measured beside what a task measures."""

    @abstractmethod
    def new_metrics(self) -> dict[str, Metric]:
        """Return empty accumulators by name."""

    @abstractmethod
    def update(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch to the accumulators."""


EXTRA_METRICS: Registry[Callable[[Task], ExtraMetric]] = Registry(
    "metric",
    {
        "calibration": "deepseek.medical.calibration_metric:Calibration",
        "hd95": "deepseek.medical.hausdorff:Hausdorff",
    },
)
"""From a task to what is measured beside it; a ConfigError where that would say nothing."""


class MeasuredTask(Task):
    """A task with metrics more.

    Args:
        task: it.
        names: of `EXTRA_METRICS`.

    Raises:
        ConfigError: there is no such metric, or it says nothing of this task.
    """

    def __init__(self, task: Task, names: Sequence[str]) -> None:
        self._task = task
        self._extras = [EXTRA_METRICS.get(name)(task) for name in names]
        self.monitor, self.higher_is_better = task.monitor, task.higher_is_better

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return that of the task."""
        return self._task.loss(outputs, batch)

    def new_metrics(self) -> dict[str, Metric]:
        """Return those of the task and the others."""
        found = self._task.new_metrics()
        for extra in self._extras:
            found |= extra.new_metrics()
        return found

    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch to all of them."""
        self._task.update_metrics(metrics, outputs, batch)
        for extra in self._extras:
            extra.update(metrics, outputs, batch)

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return those of the task."""
        return self._task.predictions(outputs, batch)
