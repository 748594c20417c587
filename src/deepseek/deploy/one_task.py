"""What a model of several tasks says of one of them."""

from collections.abc import Mapping

from torch import Tensor

from deepseek.datasets.task_labels import has_label
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine


def choose_task(
    engine: ModelEngine, samples: Mapping[str, Tensor], task: str | None = None
) -> str | None:
    """Return the task that is asked for, or else that of classes which the data have labels of.

    Args:
        engine: the model.
        samples: what it predicts, with the labels; see `MultiTask.predictions`.
        task: its name; `None`: what has labels.

    Returns:
        `None` for a model of one task.

    Raises:
        ConfigError: the model has no such task; or the data have labels of none whose samples are
            of a class each, or of several.
    """
    tasks = tuple(engine.spec.tasks) if engine.spec else ()
    if task is not None and task not in tasks:
        raise ConfigError(
            f"task={task!r} of a model of {', '.join(tasks) or 'one task'}",
            fix=f"choose one of: {', '.join(tasks)}" if tasks else "leave task out",
        )
    if task is not None or not tasks:
        return task
    of_classes = [name for name in tasks if finds_classes(samples_of_task(samples, name))]
    found = [name for name in of_classes if has_label(samples[f"{name}_targets"]).any()]
    if len(found) != 1:
        raise ConfigError(
            f"of the tasks {', '.join(tasks)} the data have labels of"
            f" {' and '.join(found) or 'none whose samples are of a class each'}",
            fix="say which: task=NAME" if found else "give labelled data of such a task",
        )
    return found[0]


def finds_classes(samples: Mapping[str, Tensor]) -> bool:
    """Return whether there are probabilities of classes for each sample, (N, K)."""
    return "probs" in samples and samples["probs"].ndim == 2


def samples_of_task(samples: Mapping[str, Tensor], task: str | None) -> dict[str, Tensor]:
    """Return what is predicted for one task, of the samples that have a label of it.

    Args:
        samples: `TASK_KEY` -> values, (N, ...), and `index` (N,).
        task: its name; `None`: there is one.
    """
    if task is None:
        return dict(samples)
    prefix = f"{task}_"
    own = {
        name.removeprefix(prefix): value
        for name, value in samples.items()
        if name.startswith(prefix)
    }
    own["index"] = samples["index"]
    if "targets" not in own:  # tags of tokens: their loss alone is kept
        return own
    is_known = has_label(own["targets"])
    return {name: value[is_known] for name, value in own.items()}
