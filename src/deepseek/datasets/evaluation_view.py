"""Data as they are evaluated on: whole texts and volumes, and no parts drawn at random."""

from deepseek.datasets.loader import DataLoader
from deepseek.datasets.text_dataset import TextDataset
from deepseek.datasets.volume_dataset import VolumeDataset


def evaluation_dataset(data):
    """Return a data set, or that of a bound `DataLoader`, as it is evaluated on."""
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(dataset, TextDataset | VolumeDataset):
        return dataset.evaluation_view()
    return dataset
