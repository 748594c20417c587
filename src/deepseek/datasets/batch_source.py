"""What loaders ask of data sets: batches from ours, samples from others."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from deepseek.datasets.foreign_dataset import ForeignDataset
from deepseek.datasets.sampler import Lengths
from deepseek.datasets.spec import DataSpec


@runtime_checkable
class BatchSource(Protocol):
    """What a loader asks of a data set of ours; applications bring some of their own."""

    @property
    def is_light(self) -> bool:
        """Whether worker processes would cost more than they save."""
        ...

    @property
    def lengths(self) -> Lengths:
        """Length of each sample, or from an epoch to them, where batches are made by length."""
        ...

    @property
    def spec(self) -> DataSpec:
        """What a sample holds."""
        ...

    def __len__(self) -> int: ...

    def get_batch(
        self, indices: list[int], epoch: int
    ) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
        """Return the samples stacked, and the bad ones as (index, reason)."""
        ...


@runtime_checkable
class Viewed(Protocol):
    """A data set that is evaluated on otherwise than it is learnt from."""

    def evaluation_view(self): ...  # noqa: D102, ANN


def as_source(dataset, seed: int) -> BatchSource:
    """Return a data set as a loader asks it: one of ours as it is, another wrapped."""
    return dataset if isinstance(dataset, BatchSource) else ForeignDataset(dataset, seed)


def evaluated(dataset: Any) -> Any:
    """Return a data set as it is evaluated on: whole texts and volumes, nothing drawn at random."""
    return dataset.evaluation_view() if isinstance(dataset, Viewed) else dataset
