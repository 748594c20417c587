"""A task that is learned from a teacher as well as from labels.

Paper: Hinton et al. 2015, arXiv 1503.02531, section 2: cross-entropy with the teacher's softened
probabilities, times T^2, beside the task's own loss. Written as a KL divergence: zero where the
student says what the teacher says.

Shapes: B batch, T tokens, C classes.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.table_model import inputs_of
from deepseek.trainer.binary import BinaryTask
from deepseek.trainer.metrics import Metric
from deepseek.trainer.multi_task import MultiTask
from deepseek.trainer.regression import RegressionTask
from deepseek.trainer.task import IGNORE_INDEX, Batch, Task, resolve_task


class Distillation(Task):
    """The loss of a task, and how far the student's probabilities are from a teacher's.

    The teacher is frozen, in evaluation, in the precision of the run, and where `place` puts it.
    Metrics are those of the task alone.

    Args:
        teacher: a model of the same inputs and classes, such as the one that was pruned.
        temperature: T, by which logits are divided before they are compared, > 0.
        weight: share of the teacher in the loss, in 0..1; the task has the rest.
        task: what a batch means; by default what the data of the teacher's spec are for.

    Raises:
        ConfigError: a number is out of its range, or the teacher does not say what its task is.

    Example:
        ```python
        Trainer(pruned.model, data, epochs=10, task=Distillation(engine)).fit()
        ```
    """

    takes_parts = False

    def __init__(
        self,
        teacher: nn.Module,
        temperature: float = 4.0,
        weight: float = 0.5,
        task: Task | None = None,
    ) -> None:
        if not temperature > 0:
            raise ConfigError(f"temperature={temperature} is not above 0", fix="use 4.0")
        if not 0 <= weight <= 1:
            raise ConfigError(f"weight={weight} is not in 0..1", fix="use 0.5")
        engine = ModelEngine.wrap(teacher)
        if task is None:
            if engine.spec is None:
                raise ConfigError(
                    "the teacher has no data spec, so its task is not known",
                    fix="give task=, such as ClassificationTask(10), or bind a spec to the teacher",
                )
            task = resolve_task("auto", engine.spec, 0.0)
        without = BinaryTask | MultiTask | RegressionTask
        if isinstance(task, without) or task.min_score_metric is not None:
            raise ConfigError(
                f"{type(task).__name__} has no one set of classes, of which a teacher could give"
                " the probabilities",
                fix="train without a teacher: leave Distillation (--distill) out",
            )
        # a copy: what was given stays as it is, and may be trained on
        self.teacher = copy.deepcopy(engine).eval().requires_grad_(False)
        self.task = task
        self.temperature, self.weight = temperature, weight
        self.monitor, self.higher_is_better = task.monitor, task.higher_is_better

    def place(self, device: torch.device) -> None:
        """Move the teacher, and what the task needs."""
        self.teacher.place(device)
        self.task.place(device)

    def count_items(self, batch: Batch) -> int:
        """Return how many items the task's loss is a mean over."""
        return self.task.count_items(batch)

    def loss(self, outputs: Tensor | Sequence[Tensor], batch: Batch) -> Tensor:
        """Return both losses, weighted and summed over the items of the batch.

        Of a model with several outputs in training the first is compared with the teacher's.

        Raises:
            ConfigError: student and teacher have other outputs.
        """
        own = self.task.loss(outputs, batch)  # pyright: ignore[reportArgumentType]
        if self.weight == 0:
            return own
        student: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
        with torch.no_grad():
            taught = self.teacher(inputs_of(batch))
        if taught.shape != student.shape:
            raise ConfigError(
                f"the teacher's outputs are {tuple(taught.shape)}, the student's"
                f" {tuple(student.shape)}",
                fix="give a teacher of the same classes",
            )
        return (1 - self.weight) * own + self.weight * self._divergence(student, taught, batch)

    def _divergence(self, student: Tensor, taught: Tensor, batch: Batch) -> Tensor:
        """Return the divergence, summed over samples (B, C) or labelled tokens (B, T, C).

        Of pictures and volumes, (B, C, ...), each sample has the mean over its pixels.
        """
        dim = 2 if student.ndim == 3 else 1
        expected = (taught.float() / self.temperature).log_softmax(dim)
        found = (student.float() / self.temperature).log_softmax(dim)
        each = F.kl_div(found, expected, reduction="none", log_target=True).sum(dim)
        if student.ndim == 3:
            each = each * (batch["targets"] != IGNORE_INDEX)
        elif student.ndim > 3:
            each = each.flatten(1).mean(1)
        return each.sum() * self.temperature**2

    def new_metrics(self) -> dict[str, Metric]:
        """Return those of the task."""
        return self.task.new_metrics()

    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch."""
        self.task.update_metrics(metrics, outputs, batch)

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return those of the task."""
        return self.task.predictions(outputs, batch)
