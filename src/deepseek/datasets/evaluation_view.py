"""Data as they are evaluated on: whole texts and volumes, and no parts drawn at random."""

from typing import Any

from deepseek.datasets.batch_source import evaluated
from deepseek.datasets.loader import DataLoader


def evaluation_dataset(data: Any) -> Any:
    """Return a data set, or that of a bound `DataLoader`, as it is evaluated on."""
    dataset = data.dataset if isinstance(data, DataLoader) else data
    return evaluated(dataset)
