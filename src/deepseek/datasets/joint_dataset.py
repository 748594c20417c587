"""Samples with a label for each of several tasks, of which some may be missing.

Shapes: N samples, K numbers of a label.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from deepseek.datasets.batch_source import as_source, evaluated
from deepseek.datasets.randomness import current_epoch
from deepseek.datasets.sampler import Lengths
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.task_labels import (
    joint_spec,
    spec_of_task,
    with_labels,
)
from deepseek.datasets.token_store import IGNORE_INDEX
from deepseek.errors import ConfigError, DataError


class JointDataset(torch.utils.data.Dataset):
    """A data set, and labels of further tasks for its samples.

    Args:
        data: any map-style data set; it gives the inputs.
        labels: task -> a label for each sample: class numbers from 0, (N,), -100 where one is
            missing; or numbers, (N,) or (N, K) floats, NaN where one is missing.
        own: name of the task that the data set's own targets are of; `None` leaves them out.
        class_names: task -> names of its classes; their numbers by default.
        seed: of what a data set that is not ours draws.

    Raises:
        DataError: there are more or fewer labels than samples, or a class number is below 0.
        ConfigError: there are fewer than two tasks.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.zeros(3, 2))
        >>> joint = JointDataset(data, {"kind": [0, 1, -100], "size": [0.5, float("nan"), 2.0]})
        >>> joint[2]["targets"].tolist()
        [False, True]
    """

    def __init__(
        self,
        data: torch.utils.data.Dataset,
        labels: Mapping[str, Sequence | np.ndarray | Tensor],
        *,
        own: str | None = None,
        class_names: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
    ) -> None:
        self._data, self._own, self._seed = data, own, seed
        self._source = as_source(data, seed)
        names = class_names or {}
        if unknown := set(names) - set(labels):
            raise ConfigError(
                f"class_names of {sorted(unknown)}, which are no tasks of labels",
                fix=f"give those of {sorted(labels)}",
            )
        self._labels = {name: _read(name, given, len(self)) for name, given in labels.items()}
        tasks = {name: _spec(name, x, names.get(name)) for name, x in self._labels.items()}
        if own is not None:
            tasks = {own: spec_of_task(self._source.spec, own), **tasks}
        self.spec = joint_spec(self._source.spec, tasks)
        self.is_light = self._source.is_light

    def __len__(self) -> int:
        return len(self._source)

    @property
    def data(self) -> torch.utils.data.Dataset:
        """The data set that gives the inputs."""
        return self._data

    @property
    def lengths(self) -> Lengths:
        """Length of each sample, where batches are to be made by length."""
        return self._source.lengths

    @property
    def max_bad_share(self) -> float:
        """Share of the samples that may be skipped, 0..1, as the data set has it."""
        return getattr(self._source, "max_bad_share", 0.0)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch, _ = self.get_batch([range(len(self))[index]], current_epoch())
        return {name: value[0] for name, value in batch.items()}

    def get_batch(
        self, indices: Sequence[int], epoch: int
    ) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
        """Return the samples stacked, with the labels of all tasks, and the bad ones.

        {} if all are bad.
        """
        batch, bad = self._source.get_batch(list(indices), epoch)
        if not batch:
            return {}, bad
        rows = batch["index"].numpy()
        labels = {name: torch.from_numpy(each[rows]) for name, each in self._labels.items()}
        if self._own is not None:
            labels = {self._own: batch["targets"], **labels}
        return with_labels(batch, labels), bad

    def evaluation_view(self) -> "JointDataset":
        """Return the same samples as they are evaluated on."""
        names = {name: self.spec.tasks[name].class_names for name in self._labels}
        known = {name: each for name, each in names.items() if each}
        data = evaluated(self._data)
        return JointDataset(data, self._labels, own=self._own, class_names=known, seed=self._seed)


def _read(name: str, given: Sequence | np.ndarray | Tensor, num_samples: int) -> np.ndarray:
    """Return labels as int64 (N,), or float32 (N,) or (N, K)."""
    labels = given.numpy() if isinstance(given, Tensor) else np.asarray(given)
    is_number = np.issubdtype(labels.dtype, np.floating)
    is_class = np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool
    if not (is_number and labels.ndim in (1, 2)) and not (is_class and labels.ndim == 1):
        raise DataError(
            f"the labels of task {name!r} are {labels.dtype} of shape {labels.shape}",
            fix="give class numbers (N,), or floats (N,) or (N, K)",
        )
    if len(labels) != num_samples:
        raise DataError(
            f"task {name!r} has {len(labels)} labels for {num_samples} samples",
            fix="give one for each sample; -100 or NaN where it is missing",
        )
    labels = labels.astype(np.float32 if is_number else np.int64)
    if is_class and ((labels < 0) & (labels != IGNORE_INDEX)).any():
        raise DataError(
            f"the smallest label of task {name!r} is {labels.min()}; class numbers count from 0",
            fix=f"number the classes 0, 1, 2, ...; {IGNORE_INDEX} where one is missing",
        )
    return labels


def _spec(name: str, labels: np.ndarray, class_names: Sequence[str] | None) -> DataSpec:
    if labels.dtype == np.float32:
        shape = labels.shape[1:]
        spec = DataSpec("regression", {"targets": FieldSpec(shape, "float32")})
        return spec_of_task(spec, name)
    known = labels[labels >= 0]
    num_classes = int(known.max(initial=0)) + 1
    names = tuple(class_names or map(str, range(num_classes)))
    if len(names) < num_classes:
        raise DataError(
            f"task {name!r} has the class {num_classes - 1}, and {len(names)} class_names",
            fix="name all classes",
        )
    counts = tuple(np.bincount(known, minlength=len(names)).tolist())
    spec = DataSpec("classification", {"targets": FieldSpec((), "int64")}, names, counts)
    return spec_of_task(spec, name)
