"""What a sample of each class counts in the loss.

`balanced` is scikit-learn's (King & Zeng 2001): samples / (classes x samples of the class), so that
all classes count the same and a sample counts 1 in the mean.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from deepseek.datasets import DataSpec
from deepseek.errors import ConfigError
from deepseek.trainer.task import ClassificationTask, Task


def weigh_classes(
    task: Task, spec: DataSpec, wanted: Literal["balanced"] | Sequence[float] | None
) -> Task:
    """Return the task with what its classes count.

    Args:
        task: of the run.
        spec: of the training data.
        wanted: "balanced", a number for each class, or `None`: all count 1.

    Raises:
        ConfigError: the task has no classes, other ones, or the data one without a sample.
    """
    if wanted is None:
        return task
    if type(task) is not ClassificationTask:
        raise ConfigError(
            f"class_weights={wanted} would be ignored: {type(task).__name__} has no class for each"
            " sample",
            fix="leave it out",
        )
    counts = spec.class_counts
    if wanted == "balanced":
        if not counts or 0 in counts:
            missing = [name for name, n in zip(spec.class_names, counts, strict=False) if not n]
            raise ConfigError(
                f"class_weights=balanced, and of these classes there is no sample: {missing}"
                if missing
                else "class_weights=balanced, and the data do not say how large their classes are",
                fix="give the weights as numbers",
            )
        weights = [sum(counts) / (len(counts) * count) for count in counts]
    else:
        weights = [float(each) for each in wanted]
    if len(weights) != task.num_classes:
        raise ConfigError(
            f"class_weights has {len(weights)} numbers, the data {task.num_classes} classes",
            fix="give one for each class",
        )
    return ClassificationTask(task.num_classes, task.label_smoothing, torch.tensor(weights))
