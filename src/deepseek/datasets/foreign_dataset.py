"""Any map-style torch data set, made to answer as ours do."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from deepseek.datasets.infer_spec import infer_spec
from deepseek.datasets.randomness import (
    derive_key,
    in_epoch,
    preserved_global_generators,
    seed_global_generators,
)
from deepseek.datasets.sample import name_fields, read_sample
from deepseek.datasets.workers import note_sample
from deepseek.errors import DataError


class ForeignDataset:
    """Wraps a data set that yields `(x, y)` or a dict.

    What it draws from the global generators of torch, numpy or Python is a function of (seed,
    epoch, index), and so is what a data set of ours draws within it.

    Args:
        dataset: a map-style torch data set.
        seed: of its randomness.
    """

    lengths = None

    def __init__(self, dataset: torch.utils.data.Dataset, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        self.spec = infer_spec(dataset)
        # A subclass may draw; TensorDataset itself only looks up, and can look up many at once.
        self._is_tensors = type(dataset) is TensorDataset
        self.is_light = self._is_tensors

    def __len__(self) -> int:
        return len(self._dataset)  # pyright: ignore[reportArgumentType]

    def get_batch(
        self, indices: Sequence[int], epoch: int
    ) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
        """Return the samples stacked; none is ever skipped.

        Raises:
            DataError: if a sample cannot be read, is neither a pair nor a dict, or samples do not
                stack.
        """
        index = torch.tensor(indices, dtype=torch.int64)
        if self._is_tensors:
            tensors = self._dataset.tensors  # pyright: ignore[reportAttributeAccessIssue]
            batch = name_fields(tuple(tensor[index] for tensor in tensors))
            return self._finish(batch, index), []
        samples = []
        with preserved_global_generators(), in_epoch(epoch):
            for i in indices:
                note_sample(i)
                seed_global_generators(derive_key(self._seed, epoch, i))
                samples.append(read_sample(self._dataset, i))
        try:
            batch = default_collate(samples)
        except (RuntimeError, TypeError, KeyError) as error:
            raise DataError(
                f"samples {list(indices[:4])}... of {type(self._dataset).__name__} do not stack"
                f" to a batch: {error}",
                fix="let every sample have the same fields and shapes",
            ) from error
        return self._finish(batch, index), []

    def _finish(self, batch: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        targets, has_classes = batch.get("targets"), self.spec.task == "classification"
        if has_classes and isinstance(targets, Tensor) and not targets.is_floating_point():
            batch["targets"] = targets.long()  # class numbers come in any whole dtype
        return {**batch, "index": index}
