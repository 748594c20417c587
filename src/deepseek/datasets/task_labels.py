"""The labels of several tasks in one batch, and what a data set says of them.

A label that is missing is -100 where labels are whole numbers, and NaN where they are not.

Shapes: B batch, N tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.token_store import IGNORE_INDEX
from deepseek.errors import ConfigError

TASK = "multi"
PREFIX = "targets."


def has_label(labels: Tensor) -> Tensor:
    """Return which samples have a label: any that is not missing, (B,) bool."""
    known = ~labels.isnan() if labels.is_floating_point() else labels != IGNORE_INDEX
    return known.flatten(1).any(1) if known.ndim > 1 else known


def missing(count: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return labels that are missing, (count, *shape)."""
    value = torch.nan if dtype.is_floating_point else IGNORE_INDEX
    return torch.full((count, *shape), value, dtype=dtype)


def with_labels(batch: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch with the labels of each task, and which samples have them."""
    has = torch.stack([has_label(each) for each in labels.values()], 1)
    return {
        "inputs": batch["inputs"],
        "targets": has,
        **{f"{PREFIX}{name}": each for name, each in labels.items()},
        "index": batch["index"],
    }


def spec_of_task(spec: DataSpec, name: str) -> DataSpec:
    """Return what a data set of one task says of it, and of its inputs only whether they are pairs.

    Raises:
        ConfigError: it has no targets, or says nothing that a task follows from.
    """
    target = spec.fields.get("targets")
    task = spec.task
    if task == "unknown" and target is not None and "float" in target.dtype:
        task = "regression"
    if target is None or task in ("unknown", TASK):
        raise ConfigError(
            f"the data of task {name!r} have no labels that a task follows from",
            fix="give class numbers, numbers, or a data set that says what it is for",
        )
    if "." in name:
        raise ConfigError(f"the task {name!r} has a dot in its name", fix="leave it out")
    return replace(
        spec, task=task, fields={"targets": target}, transform=None, normalization=None,
        tokenizer=None, pad_token=None, document_token=None,
    )  # fmt: skip


def joint_spec(inputs: DataSpec, tasks: dict[str, DataSpec]) -> DataSpec:
    """Return the spec of data of several tasks.

    Args:
        inputs: of a data set with these inputs.
        tasks: name -> `spec_of_task`.
    """
    if len(tasks) < 2:
        raise ConfigError(f"there are {len(tasks)} tasks", fix="give labels of two or more")
    fields = {
        "inputs": inputs.fields["inputs"],
        "targets": FieldSpec((len(tasks),), "bool"),
        **{f"{PREFIX}{name}": own.fields["targets"] for name, own in tasks.items()},
    }
    return replace(inputs, task=TASK, fields=fields, class_names=(), class_counts=(), tasks=tasks)
