import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from deepseek.datasets import DataLoader, FieldSpec, ImageDataset, infer_spec
from deepseek.errors import DataError
from deepseek.trainer import Trainer


class Listed(Dataset):
    """A data set of given samples, with given attributes."""

    def __init__(self, samples, **attributes):
        self.samples, self.reads = samples, 0
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.reads += 1
        return self.samples[index]


PAIRS = [(torch.zeros(3, 4, 4, dtype=torch.uint8), label) for label in (0, 2, 2)]


def test_ours_is_its_own():
    data = ImageDataset("digits", "none", channels=1)
    assert infer_spec(data) is data.spec


def test_tensors():
    spec = infer_spec(TensorDataset(torch.zeros(5, 7), torch.tensor([0, 1, 1, 1, 2])))
    assert spec.fields == {
        "inputs": FieldSpec((7,), "float32"),
        "targets": FieldSpec((), "int64"),
    }
    assert spec.class_counts == (1, 3, 1)
    assert spec.normalization is None


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32"])
def test_class_numbers_of_any_whole_dtype_train(dtype, tmp_path):
    targets = (torch.arange(12) % 3).to(getattr(torch, dtype))
    tensors = TensorDataset(torch.randn(12, 2), targets)
    samples = Listed([(torch.zeros(2), y) for y in targets.numpy()])
    for number, data in enumerate((tensors, samples)):
        assert infer_spec(data).fields["targets"] == FieldSpec((), "int64")
        batch = next(iter(DataLoader(data, batch_size=4, shuffle=False)))
        assert batch["targets"].dtype == torch.int64
        assert batch["targets"].tolist() == [0, 1, 2, 0]
        settings = {"epochs": 1, "num_workers": 0, "loggers": (), "device": "cpu"}
        run_dir = tmp_path / str(number)
        history = Trainer(torch.nn.Linear(2, 3), data, data, run_dir=run_dir, **settings).fit()
        assert 0 <= history[-1]["val_accuracy"] <= 1


@pytest.mark.parametrize("targets", [[0, 2, 2], np.array([0, 2, 2]), torch.tensor([0, 2, 2])])
def test_targets_and_classes_are_used(targets):
    data = Listed(PAIRS, targets=targets, classes=["a", "b", "c", "d"])
    spec = infer_spec(data)
    assert spec.class_names == ("a", "b", "c", "d")
    assert spec.class_counts == (1, 0, 2, 0)
    assert data.reads == 1
    assert spec.normalization.mean == (0.5,) * 3


def test_without_targets_samples_are_counted():
    data = Listed([{"inputs": x, "targets": torch.tensor(y)} for x, y in PAIRS])
    assert infer_spec(data).class_counts == (1, 0, 2)
    assert data.reads == 4


def test_targets_that_are_no_classes():
    data = Listed([(torch.zeros(2), torch.zeros(3))] * 4)
    assert infer_spec(data).num_classes == 0
    assert data.reads == 1


def test_looking_draws_nothing():
    class Drawing(Listed):
        def __getitem__(self, index):
            torch.rand(1)
            return super().__getitem__(index)

    state = torch.get_rng_state()
    infer_spec(Drawing(PAIRS))
    assert torch.equal(torch.get_rng_state(), state)


def test_mistakes():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(PAIRS)

    with pytest.raises(DataError, match="Stream has no length"):
        infer_spec(Stream())
    with pytest.raises(DataError, match="is empty"):
        infer_spec(Listed([]))
    with pytest.raises(DataError, match="a sample is a tuple of 3"):
        infer_spec(Listed([(1, 2, 3)]))
    with pytest.raises(DataError, match="smallest target is -1"):
        infer_spec(Listed([(torch.zeros(1), -1)]))
