import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.errors import ConfigError
from deepseek.trainer import Trainer, lr_range_test

QUIET = {"loggers": (), "num_workers": 0, "precision": "fp32"}


def make_trainer(run, **settings):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    inputs = torch.randn(512, 8)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    return Trainer(
        net, data, batch_size=16, epochs=1, run_dir=run, **{"optimizer": "sgd", **QUIET, **settings}
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_suggests_a_rate_that_learns_and_leaves_no_trace(tmp_path, optimizer):
    untouched, tested = (
        make_trainer(tmp_path / name, optimizer=optimizer, ema_decay=0.9) for name in "ab"
    )
    found = lr_range_test(tested)
    assert 1e-4 < found.suggestion < 1
    assert found.losses[0] > 0.9
    assert min(found.smoothed) < 0.8 * found.losses[0]
    assert list(found.lrs) == sorted(found.lrs)
    untouched.fit()
    tested.fit()
    for name, tensor in untouched.model.state_dict().items():
        assert torch.equal(tensor, tested.model.state_dict()[name]), name


def test_the_picture_is_drawn(tmp_path):
    found = lr_range_test(make_trainer(tmp_path / "a"), num_steps=40)
    svg = found.plot(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text() == svg
    assert "falls fastest at" in svg
    assert svg.count("<polyline") == 2
    assert "nan" not in svg


@pytest.mark.parametrize(
    "wrong", [{"min_lr": 0.0}, {"min_lr": 2.0, "max_lr": 1.0}, {"num_steps": 3}]
)
def test_an_empty_range_is_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="is no range test"):
        lr_range_test(make_trainer(tmp_path / "a"), **wrong)


def test_what_judges_losses_is_as_it_was(tmp_path):
    trainer = make_trainer(tmp_path / "run", loss_spike=3.0)
    guard = trainer.assembly.step.guard
    before = guard.state_dict()
    lr_range_test(trainer, num_steps=20)
    assert guard.state_dict() == before == {"losses": []}
