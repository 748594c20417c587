"""Data as they are evaluated on: whole texts and volumes, and no parts drawn at random."""

from deepseek.datasets.joint_dataset import JointDataset
from deepseek.datasets.loader import DataLoader
from deepseek.datasets.multi_task_dataset import MultiTaskDataset
from deepseek.datasets.task_labels import evaluated


def evaluation_dataset(data):
    """Return a data set, or that of a bound `DataLoader`, as it is evaluated on."""
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(dataset, JointDataset | MultiTaskDataset):
        return dataset.evaluation_view()
    return evaluated(dataset)
