"""Data as they are evaluated on: whole texts and volumes, and no parts drawn at random."""

from typing import Protocol, runtime_checkable

from deepseek.datasets.loader import DataLoader


@runtime_checkable
class Viewed(Protocol):
    """A data set that is evaluated on otherwise than it is learnt from."""

    def evaluation_view(self): ...  # noqa: D102, ANN


def evaluation_dataset(data):
    """Return a data set, or that of a bound `DataLoader`, as it is evaluated on."""
    dataset = data.dataset if isinstance(data, DataLoader) else data
    return dataset.evaluation_view() if isinstance(dataset, Viewed) else dataset
