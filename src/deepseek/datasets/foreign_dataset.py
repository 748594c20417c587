"""Any map-style torch data set, made to answer as ours do."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from deepseek.datasets.infer_spec import infer_spec
from deepseek.datasets.randomness import (
    derive_key,
    preserved_global_generators,
    seed_global_generators,
)
from deepseek.errors import DataError


class ForeignDataset:
    """Wraps a data set that yields `(x, y)` or a dict.

    What it draws from the global generators of torch, numpy or Python is a function of (seed,
    epoch, index).

    Args:
        dataset: a map-style torch data set.
        seed: of its randomness.
    """

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
            DataError: if a sample is neither a pair nor a dict, or samples do not stack.
        """
        index = torch.tensor(indices, dtype=torch.int64)
        if self._is_tensors:
            tensors = self._dataset.tensors  # pyright: ignore[reportAttributeAccessIssue]
            batch = name_fields(tuple(tensor[index] for tensor in tensors))
            return {**batch, "index": index}, []
        samples = []
        with preserved_global_generators():
            for i in indices:
                seed_global_generators(derive_key(self._seed, epoch, i))
                samples.append(name_fields(self._dataset[i]))
        try:
            batch = default_collate(samples)
        except (RuntimeError, TypeError, KeyError) as error:
            raise DataError(
                f"samples {list(indices[:4])}... of {type(self._dataset).__name__} do not stack"
                f" to a batch: {error}",
                fix="let every sample have the same fields and shapes",
            ) from error
        return {**batch, "index": index}, []


def name_fields(sample: object) -> dict:
    """Return a sample as a dict: a pair becomes `inputs` and `targets`.

    Raises:
        DataError: if it is neither a tensor, a tuple of one or two, nor a dict.
    """
    if isinstance(sample, Mapping):
        return dict(sample)
    if isinstance(sample, Tensor):
        return {"inputs": sample}
    if isinstance(sample, Sequence) and not isinstance(sample, str) and 1 <= len(sample) <= 2:
        return dict(zip(("inputs", "targets"), sample, strict=False))
    size = f" of {len(sample)}" if isinstance(sample, Sequence) else ""
    raise DataError(
        f"a sample is a {type(sample).__name__}{size}, neither (x, y) nor a dict",
        fix='let the data set return (x, y), or {"inputs": x, "targets": y}',
    )
