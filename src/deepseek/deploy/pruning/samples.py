"""A few batches of the user's data, to see what a model does with them."""

from collections.abc import Iterator
from itertools import islice

from torch.utils.data import Dataset

from deepseek.datasets import DataLoader
from deepseek.trainer.task import Batch

BATCH_SIZE = 64
Data = Dataset | DataLoader


def dataset_of(data: Data) -> Dataset:
    """Return a data set, or that of a loader."""
    return data.dataset if isinstance(data, DataLoader) else data


def some_batches(data: Data, count: int) -> Iterator[Batch]:
    """Return batches of samples drawn from all of the data, the same ones each time."""
    loader = DataLoader(batch_size=BATCH_SIZE, shuffle=True, num_workers=0, seed=0)
    yield from islice(loader.bind(dataset_of(data)), count)
