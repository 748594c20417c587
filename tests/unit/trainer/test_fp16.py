"""fp16 with loss scaling. A user is refused it on a CPU, where it is slow; here it is allowed."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.errors import DivergedError
from deepseek.trainer import Callback, Trainer, assembly
from deepseek.trainer.precision import Precision


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    fp16 = Precision("fp16", "cpu", "test")
    monkeypatch.setattr(assembly, "resolve_precision", lambda *_: fp16)


class Record(Callback):
    """Keeps the scale, the verdict and the weights after every step."""

    def __init__(self):
        self.scales, self.bad, self.weights = [], [], []

    def on_step_end(self, trainer, result):
        self.scales.append(trainer.assembly.step.scaler.get_scale())
        self.bad.append(result.bad)
        self.weights.append(trainer.model.module[0].weight.detach().clone())


class Overflowing(nn.Linear):
    """A layer whose gradient overflows: always, or at one scale and above."""

    limit = 0.0

    def forward(self, inputs):
        out = super().forward(inputs)
        if out.requires_grad:
            out.register_hook(lambda grad: grad * torch.inf if self.overflows(grad) else grad)
        return out

    def overflows(self, grad):
        return float(grad.abs().max()) > self.limit


def make_trainer(folder, module=None, **settings):
    torch.manual_seed(0)
    inputs = torch.randn(64, 16)
    data = TensorDataset(inputs, (inputs.sum(1) > 0).long())
    module = module or nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
    settings = {"epochs": 4, "precision": "fp16", "checkpoint_every": 4, **settings}
    return Trainer(module, data, batch_size=16, loggers=("jsonl",), run_dir=folder, **settings)


def overflowing(limit):
    layer = Overflowing(32, 2)
    layer.limit = limit
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), layer)


def test_it_learns(tmp_path):
    trainer = make_trainer(tmp_path / "run", epochs=30, lr=1e-2)
    history = trainer.fit()
    assert history.records[-1]["loss"] < 0.2 * history.records[0]["loss"]


def test_an_overflow_halves_the_scale_and_is_no_bad_step(tmp_path):
    record = Record()
    trainer = make_trainer(tmp_path / "run", overflowing(limit=2000.0), callbacks=[record])
    before = trainer.model.module[0].weight.detach().clone()
    trainer.fit()
    assert record.scales[0] == 32768  # of 65536
    assert torch.equal(record.weights[0], before)
    assert record.bad == [None] * 16
    assert record.scales[-1] == record.scales[-2]  # found
    assert not torch.equal(record.weights[-1], before)


def test_an_overflow_at_any_scale_is_a_bad_step(tmp_path):
    trainer = make_trainer(tmp_path / "run", overflowing(limit=-1.0), epochs=20)
    with pytest.raises(DivergedError, match="gradient"):
        trainer.fit()
    assert trainer.step <= 20


def test_a_nan_in_the_batch_is_a_bad_step(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.train_loader.dataset.tensors[0][5] = torch.nan
    with pytest.raises(DivergedError, match="sample 5"):
        trainer.fit()


def test_a_resumed_run_has_the_scale_and_the_weights_of_one_without_stop(tmp_path):
    settings = {"schedule": "constant", "warmup": 0}
    whole = make_trainer(tmp_path / "whole", overflowing(limit=2000.0), **settings)
    whole.fit()
    make_trainer(tmp_path / "cut", overflowing(limit=2000.0), max_steps=2, **settings).fit()
    resumed = make_trainer(tmp_path / "cut", overflowing(limit=2000.0), resume=True, **settings)
    resumed.fit()
    scales = [trainer.assembly.step.scaler.state_dict() for trainer in (whole, resumed)]
    assert scales[0] == scales[1]
    for name, tensor in whole.model.module.state_dict().items():
        assert torch.equal(tensor, resumed.model.module.state_dict()[name])
