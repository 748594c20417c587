import pytest
import torch
from torch.utils.data import TensorDataset

from deepseek.datasets import DataLoader
from deepseek.datasets.ramp import Ramp
from deepseek.errors import ConfigError


def make_loader(**settings):
    data = TensorDataset(torch.arange(50), torch.zeros(50, dtype=torch.int64))
    return DataLoader(data, batch_size=16, batch_size_ramp=(4, 4, 90), shuffle=False, **settings)


def test_the_value_rises_in_equal_parts_and_ends_at_the_end():
    ramp = Ramp(4, 4, 90, 16)
    assert [ramp.value(n) for n in (0, 29, 30, 59, 60, 89, 90, 10_000)] == [
        4, 4, 8, 8, 12, 12, 16, 16,
    ]  # fmt: skip
    assert [Ramp(4, 5, 3, 11).value(n) for n in range(4)] == [4, 4, 9, 11]
    with pytest.raises(ConfigError, match="from 20 by 4 within 90 to 16 does not rise"):
        Ramp(20, 4, 90, 16)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_grow_over_epochs_and_every_sample_comes_once(num_workers):
    loader = make_loader(num_workers=num_workers)
    sizes = []
    for epoch in range(3):
        expected = loader.count_batches(epoch)
        batches = list(loader)
        assert len(batches) == expected
        assert torch.cat([b["inputs"] for b in batches]).tolist() == list(range(50))
        sizes.append([len(b["inputs"]) for b in batches])
    assert sizes == [[4] * 8 + [8] * 2 + [2], [8, 8, 12, 12, 10], [16, 16, 16, 2]]


def test_a_resumed_loader_goes_on_with_the_same_sizes():
    whole, parts = make_loader(), make_loader()
    expected = [len(b["inputs"]) for _ in range(3) for b in whole]
    got = []
    while len(got) < len(expected):
        again = make_loader()
        again.load_state_dict(parts.state_dict())
        parts = again
        batch = next(iter(parts), None)
        if batch is not None:
            got.append(len(batch["inputs"]))
        if parts.position >= 50:
            parts.load_state_dict({"epoch": parts.epoch + 1, "position": 0})
    assert got == expected


def test_leaving_out_the_rest_of_an_epoch_contradicts_a_ramp():
    with pytest.raises(ConfigError, match="drop_last=True and a batch_size_ramp"):
        make_loader(drop_last=True)
