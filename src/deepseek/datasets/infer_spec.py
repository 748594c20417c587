"""What a torch data set holds, found out by looking."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepseek.datasets.normalization import Normalization
from deepseek.datasets.randomness import preserved_global_generators
from deepseek.datasets.sample import read_sample
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.errors import DataError


def infer_spec(dataset: torch.utils.data.Dataset) -> DataSpec:
    """Return the spec of a data set: its own, or one found from its first sample and its targets.

    Targets are looked for in `.targets`, `.labels` and `.tensors[1]`; class names in `.classes`.
    Where there are no targets, every sample is read once, unless the first shows that they are not
    class numbers.

    Raises:
        DataError: if it has no length or no samples, or yields neither (x, y) nor a dict.
    """
    spec = getattr(dataset, "spec", None)
    if isinstance(spec, DataSpec):
        return spec
    try:
        num_samples = len(dataset)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise DataError(
            f"{type(dataset).__name__} has no length: order and exact resume need one",
            fix="give a data set with __len__ and __getitem__",
        ) from error
    if num_samples == 0:
        raise DataError(f"{type(dataset).__name__} is empty", fix="give a data set with samples")
    with preserved_global_generators():  # looking must not change what the program draws later
        first = read_sample(dataset, 0)
        fields = {
            name: _field_spec(value)
            for name, value in first.items()
            if isinstance(value, Tensor | np.ndarray | np.number | np.bool_ | int | float)
        }
        target = fields.get("targets")
        if target is None or target.shape != () or "int" not in target.dtype:
            return DataSpec(task="unknown", fields=fields)
        targets = _find_targets(dataset, num_samples)
    fields["targets"] = FieldSpec((), "int64")
    return _classification_spec(dataset, fields, targets)


def _classification_spec(
    dataset: torch.utils.data.Dataset, fields: dict[str, FieldSpec], targets: np.ndarray
) -> DataSpec:
    if targets.min() < 0:
        raise DataError(
            f"the smallest target is {targets.min()}; class numbers count from 0",
            fix="number the classes 0, 1, 2, ...",
        )
    num_classes = int(targets.max()) + 1
    classes = getattr(dataset, "classes", None)
    names = [str(number) for number in range(num_classes)]
    if isinstance(classes, Sequence) and len(classes) >= num_classes:
        names = [str(name) for name in classes]
    inputs = fields.get("inputs")
    is_image = inputs is not None and inputs.dtype == "uint8" and len(inputs.shape) == 3
    channels = inputs.shape[0] if inputs is not None and is_image else 0
    return DataSpec(
        task="classification",
        fields=fields,
        class_names=tuple(names),
        class_counts=tuple(np.bincount(targets, minlength=len(names)).tolist()),
        normalization=Normalization((0.5,) * channels, (0.5,) * channels) if channels else None,
    )


def _find_targets(dataset: torch.utils.data.Dataset, num_samples: int) -> np.ndarray:
    tensors = getattr(dataset, "tensors", (None, None))
    second = tensors[1] if len(tensors) > 1 else None
    for found in (getattr(dataset, "targets", None), getattr(dataset, "labels", None), second):
        if isinstance(found, Tensor | np.ndarray | Sequence) and len(found) == num_samples:
            values = np.asarray(found.cpu() if isinstance(found, Tensor) else found)
            if values.ndim == 1 and np.issubdtype(values.dtype, np.integer):
                return values.astype(np.int64)
    return np.array([int(read_sample(dataset, i)["targets"]) for i in range(num_samples)])


def _field_spec(value: Tensor | np.ndarray | np.generic | float) -> FieldSpec:
    if isinstance(value, int):
        return FieldSpec((), "int64")
    if isinstance(value, float):
        return FieldSpec((), "float32")
    tensor = torch.as_tensor(value)
    return FieldSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
