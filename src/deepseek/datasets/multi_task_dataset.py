"""A data set for each of several tasks, of any sizes, mixed sample by sample.

An epoch has as many samples as all of them together. Of these a task has a share that follows from
its size to the power of alpha (Devlin 2018's multilingual BERT and Arivazhagan et al. 2019, arXiv
1907.05019, section 4.2, where 1 / alpha is the temperature): 1 takes every sample once, 0 as many
of each task. A task goes through all its samples before one comes again, over epochs, too.

Which sample an index stands for is a function of (seed, epoch, index): the order is exact, and a
run that resumes goes on with it.

Shapes: B batch, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.datasets.batch_source import as_source, evaluated
from deepseek.datasets.image_dataset import ImageDataset
from deepseek.datasets.randomness import current_epoch, permutation
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.task_labels import (
    joint_spec,
    missing,
    spec_of_task,
    with_labels,
)
from deepseek.datasets.token_store import IGNORE_INDEX
from deepseek.errors import ConfigError, DataError


class Places(NamedTuple):
    """Where samples are: number of the task, pass over its data, number in its data; (n,) each."""

    tasks: np.ndarray
    passes: np.ndarray
    samples: np.ndarray


class MultiTaskDataset(torch.utils.data.Dataset):
    """Samples of several tasks, each with a label of its own task alone.

    Args:
        data: task -> its data set, all with inputs of one kind: texts of one tokenizer, pictures of
            one size and normalisation, rows of one width.
        alpha: in 0..1; see above.
        seed: of which samples come when.

    Raises:
        ConfigError: inputs are of different kinds, alpha is out of range, there are fewer than two
            tasks, or one skips samples.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> big = TensorDataset(torch.zeros(90, 2), torch.arange(90) % 3)
        >>> small = TensorDataset(torch.zeros(10, 2), torch.rand(10))
        >>> MultiTaskDataset({"kind": big, "size": small}, alpha=0.5).counts
        {'kind': 75, 'size': 25}
    """

    def __init__(
        self, data: Mapping[str, torch.utils.data.Dataset], *, alpha: float = 1.0, seed: int = 0
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ConfigError(
                f"alpha={alpha} is not in 0..1",
                fix="give 1 for every sample once, 0 for as many of each task",
            )
        _check_none_is_skipped(data)
        self._data, self._alpha, self._seed = dict(data), alpha, seed
        self._sources = [as_source(each, seed) for each in data.values()]
        self._sizes = np.array([len(source) for source in self._sources], np.int64)
        self._counts = share_out(self._sizes, alpha)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self._is_fixed = False
        self.spec = self._make_spec()
        self.is_light = all(source.is_light for source in self._sources)
        self._order = lru_cache(maxsize=4 * len(self._sources))(self._draw_order)

    def __getstate__(self) -> dict:  # a cache does not go to another process
        return {name: value for name, value in self.__dict__.items() if name != "_order"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=4 * len(self._sources))(self._draw_order)

    def _make_spec(self) -> DataSpec:
        specs = {name: s.spec for name, s in zip(self._data, self._sources, strict=True)}
        tasks = {name: spec_of_task(spec, name) for name, spec in specs.items()}
        first = next(iter(specs.values()), None)
        if first is None:
            raise ConfigError("there are 0 tasks", fix="give data of two or more")
        for name, spec in specs.items():
            _check_alike(first, spec, name)
        separator = next((s.separator_token for s in specs.values() if s.separator_token), None)
        inputs = replace(first, separator_token=separator)
        if first.tokenizer is not None:
            length = max(spec.fields["inputs"].shape[0] for spec in specs.values())
            inputs = replace(inputs, fields={"inputs": FieldSpec((length,), "int64")})
        return joint_spec(inputs, tasks)

    # -- which sample ------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each task in an epoch."""
        return dict(zip(self._data, self._counts.tolist(), strict=True))

    @property
    def lengths(self) -> Callable[[int], np.ndarray] | None:
        """From an epoch to how long each sample is among those of its task, in 0..1.

        Batches are made by it where all data sets have lengths. By the lengths themselves, a batch
        would hold one task alone where texts of one are longer than those of another.
        """
        lengths = [source.lengths for source in self._sources]
        known = [each for each in lengths if isinstance(each, np.ndarray)]
        if len(known) < len(self._sources):
            return None
        ranks = [each.argsort(kind="stable").argsort(kind="stable") for each in known]

        def lengths_of(epoch: int) -> np.ndarray:
            places = self.places(np.arange(len(self)), epoch)
            lengths = np.zeros(len(self))
            for number, own in enumerate(ranks):
                rows = places.tasks == number
                lengths[rows] = (own / len(own))[places.samples[rows]]
            return lengths

        return lengths_of

    def places(self, indices: np.ndarray, epoch: int) -> Places:
        """Return which samples indices (n,) stand for in an epoch, counted from 0."""
        tasks = np.searchsorted(self._starts, indices, side="right") - 1
        offsets = indices - self._starts[tasks]
        if self._is_fixed:
            return Places(tasks, np.zeros_like(tasks), offsets)
        passes, rows = np.divmod(epoch * self._counts[tasks] + offsets, self._sizes[tasks])
        samples = np.empty_like(rows)
        for task, turn in {*zip(tasks.tolist(), passes.tolist(), strict=True)}:
            own = (tasks == task) & (passes == turn)
            samples[own] = self._order(task, turn)[rows[own]]
        return Places(tasks, passes, samples)

    def _draw_order(self, task: int, turn: int) -> np.ndarray:
        return permutation(int(self._sizes[task]), self._seed, turn, task)

    # -- samples -----------------------------------------------------------------------------

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch, _ = self.get_batch([range(len(self))[index]], current_epoch())
        return {name: value[0] for name, value in batch.items()}

    def get_batch(
        self, indices: Sequence[int], epoch: int
    ) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
        """Return `inputs` (B, ...), `targets` (B, N) bool, `targets.TASK` and `index` (B,)."""
        positions = np.array(indices, np.int64)
        places = self.places(positions, epoch)
        found: list[tuple[int, np.ndarray, dict[str, Tensor]]] = []
        bad: list[tuple[int, str]] = []
        turns = sorted({*zip(places.tasks.tolist(), places.passes.tolist(), strict=True)})
        for task, turn in turns:
            rows = np.flatnonzero((places.tasks == task) & (places.passes == turn))
            part, own_bad = self._sources[task].get_batch(places.samples[rows].tolist(), turn)
            bad += own_bad
            found.append((task, rows, part))
        if bad:
            return {}, bad
        inputs = _stack([part["inputs"] for _, _, part in found], self.spec.pad_token or 0)
        order = np.argsort(np.concatenate([rows for _, rows, _ in found]), kind="stable")
        labels = {}
        for number, name in enumerate(self._data):
            field = self.spec.tasks[name].fields["targets"]
            is_per_token = self.spec.tasks[name].task == "token_classification"
            shape = tuple(inputs.shape[1:]) if is_per_token else field.shape
            whole = missing(len(positions), shape, getattr(torch, field.dtype))
            for task, rows, part in found:
                if task == number:
                    targets = part["targets"]
                    if is_per_token:
                        targets = _widen(targets, shape[0], IGNORE_INDEX)
                    whole[torch.from_numpy(rows)] = targets
            labels[name] = whole
        mixed = {"inputs": inputs[torch.from_numpy(order)], "index": torch.from_numpy(positions)}
        return with_labels(mixed, labels), []

    def evaluation_view(self) -> "MultiTaskDataset":
        """Return every sample of every task once, in order, as it is evaluated on."""
        data = {name: evaluated(each) for name, each in self._data.items()}
        view = MultiTaskDataset(data, seed=self._seed)
        view._is_fixed = True
        return view


def share_out(sizes: np.ndarray, alpha: float) -> np.ndarray:
    """Return how many samples each task has of as many as there are, int64, at least one."""
    weights = sizes.astype(np.float64) ** alpha
    exact = sizes.sum() * weights / weights.sum()
    counts = np.floor(exact).astype(np.int64)
    rest = int(sizes.sum() - counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
    return counts


def _check_none_is_skipped(data: Mapping[str, torch.utils.data.Dataset]) -> None:
    """Refuse data that leave bad samples out: with one goes the whole batch of several tasks."""
    for name, each in data.items():
        if isinstance(each, ImageDataset) and each.on_bad_sample == "skip":
            raise ConfigError(
                f"task {name!r} has on_bad_sample=skip, and a batch of several tasks is whole or"
                " not at all",
                fix="leave on_bad_sample out, and take the bad pictures out of the data",
            )


def _check_alike(first: DataSpec, spec: DataSpec, name: str) -> None:
    is_text = first.tokenizer is not None
    here, there = first.fields["inputs"], spec.fields["inputs"]
    problems = []
    if first.tokenizer != spec.tokenizer or first.pad_token != spec.pad_token:
        problems.append("another tokenizer")
    if here.dtype != there.dtype or (not is_text and here.shape != there.shape):
        problems.append(f"inputs {there.shape} {there.dtype} instead of {here.shape} {here.dtype}")
    if first.normalization != spec.normalization:
        problems.append("another normalisation")
    if first.document_token != spec.document_token:
        problems.append("other rules for documents")
    if problems:
        raise ConfigError(
            f"the data of task {name!r} have {', '.join(problems)} than the first task's",
            fix="give all tasks one tokenizer, or one transform: a batch holds samples of several",
        )


def _stack(parts: list[Tensor], pad: int) -> Tensor:
    """Return inputs of several tasks in one batch, tokens filled up to the longest."""
    if parts[0].ndim == 2 and parts[0].dtype == torch.int64:
        width = max(part.shape[1] for part in parts)
        parts = [_widen(part, width, pad) for part in parts]
    try:
        return torch.cat(parts)
    except RuntimeError as error:
        raise DataError(
            f"samples of different tasks do not stack to a batch: {error}",
            fix="let the inputs of all tasks have the same shape",
        ) from error


def _widen(tokens: Tensor, width: int, fill: int) -> Tensor:
    return F.pad(tokens, (0, width - tokens.shape[1]), value=fill)
