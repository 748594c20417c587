"""Models of a user's own, with what ours do not have, on two ranks."""

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.ranks import RankFailed, run_ranks
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.trainer import Trainer


class Counting(nn.Module):
    """Has a float64 constant, and statistics of instances."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.InstanceNorm2d(8, track_running_stats=True)
        self.head = nn.Linear(8, 4)
        self.register_buffer("since", torch.tensor([1000000000.123], dtype=torch.float64))

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Skipping(nn.Module):
    """Leaves a layer out in every second training step."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 4)
        self.num_steps = 0

    def forward(self, x):
        x = self.first(x.flatten(1))
        self.num_steps += self.training
        return self.head(x if self.training and self.num_steps % 2 else self.second(x))


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.scale = nn.Linear(12, 4), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * self.head(x.flatten(1))


SIDES = {Counting: 8}


def train(kind, run_dir, num_samples=32, frozen=False, **settings):
    torch.manual_seed(0)
    model = kind()
    if frozen:
        model.requires_grad_(False)
    side = SIDES.get(kind, 2)
    inputs = torch.linspace(-3, 3, num_samples * 3 * side * side).sin().view(-1, 3, side, side)
    data = TensorDataset(inputs, torch.arange(num_samples) % 4)
    chosen = {"batch_size": 8, "epochs": 2, "precision": "fp32", "loggers": ["jsonl"]} | settings
    trainer = Trainer(
        model, data, num_workers=0, device="cpu", run_dir=run_dir, predict_memory=False, **chosen
    )
    history = trainer.fit()
    return [record["loss"] for record in history.records]


def on_two(kind, folder, **settings):
    return run_ranks(2, train, kind, folder / "run", folder=folder / "ranks", **settings)[0]


def test_statistics_of_uneven_batches_are_weighed_by_samples(tmp_path):
    # 33 samples: in the last batch a rank has none
    one = train(Counting, tmp_path / "one", num_samples=33)
    assert on_two(Counting, tmp_path, num_samples=33, parallel="dp2") == pytest.approx(
        one, abs=1e-5
    )
    expected = load_file(tmp_path / "one/model.bin")
    found = load_file(tmp_path / "run/model.bin")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4, msg=name)


def test_a_constant_buffer_stays_as_it_is_to_the_bit(tmp_path):
    on_two(Counting, tmp_path, parallel="dp2")
    assert load_file(tmp_path / "run/model.bin")["since"].item() == 1000000000.123


def test_convolutions_are_divided_although_they_prefer_channels_last(tmp_path):
    one = train(Counting, tmp_path / "one")
    found = on_two(Counting, tmp_path, parallel="fsdp2")
    assert found == pytest.approx(one, abs=1e-5)


def refused(tmp_path, kind, **settings):
    with pytest.raises(RankFailed) as caught:
        on_two(kind, tmp_path, **settings)
    return str(caught.value)


def test_what_fsdp_cannot_divide_is_refused(tmp_path):
    said = refused(tmp_path, Scaled, parallel="fsdp2")
    assert "dp_shard cannot divide scale, a scalar" in said


def test_channels_last_is_refused_where_weights_are_divided(tmp_path):
    said = refused(tmp_path, Counting, parallel="fsdp2", channels_last=True)
    assert "channels_last=true with parallel=fsdp2" in said


def test_a_single_sample_for_a_batch_norm_is_told(tmp_path):
    said = refused(tmp_path, Normed, num_samples=34, parallel="dp2")
    assert "1 sample of a batch, and a batch norm needs two" in said
    assert "drop_last=True" in said


def test_weights_that_some_steps_leave_out_are_told_and_can_be_declared(tmp_path):
    said = refused(tmp_path / "auto", Skipping, parallel="dp2")
    assert "unused_parameters=true" in said
    one = train(Skipping, tmp_path / "one")
    plan = {"dp_replicate": 2, "unused_parameters": True}
    found = on_two(Skipping, tmp_path / "told", parallel=plan)
    assert found == pytest.approx(one, abs=1e-5)


def test_a_model_with_nothing_to_train_is_told_so(tmp_path):
    said = refused(tmp_path, Normed, frozen=True, parallel="dp2")
    assert "no parameter that requires a gradient" in said


@pytest.mark.long  # compiles C++
def test_a_model_without_blocks_is_compiled_as_one(tmp_path):
    one = train(Scaled, tmp_path / "one")
    found = on_two(Scaled, tmp_path, parallel="dp2", graph="static")
    assert found == pytest.approx(one, abs=1e-5)
