import copy

import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.models import ModelEngine
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.world import World
from deepseek.trainer import Trainer
from deepseek.trainer.ema import ExponentialMovingAverage
from deepseek.trainer.gradient_norm import total_norm


def make_ema(decay):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    source, average = (
        ParallelModel(ModelEngine.wrap(each), World.alone())
        for each in (module, copy.deepcopy(module))
    )
    return module, ExponentialMovingAverage(source, average, decay)


def test_it_is_the_average_of_the_formula():
    module, ema = make_ema(0.3)
    expected = module[0].weight.detach().clone()
    for number in range(5):
        with torch.no_grad():
            module[0].weight.add_(1.0)
        ema.update(number)
        decay = min(0.3, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * module[0].weight.detach()
    torch.testing.assert_close(ema.named()["0.weight"], expected)


def test_buffers_are_copied_not_averaged():
    module, ema = make_ema(0.9)
    module(torch.randn(8, 3) + 5)
    assert not torch.equal(ema.average.engine.module[1].running_mean, module[1].running_mean)
    ema.follow_buffers()
    assert torch.equal(ema.average.engine.module[1].running_mean, module[1].running_mean)
    assert int(ema.average.engine.module[1].num_batches_tracked) == 1


class Spectral(nn.Module):
    """Complex weights, as those of a Fourier neural operator."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.cfloat))
        self.head = nn.Linear(8, 2)

    def forward(self, inputs):
        return self.head(torch.view_as_real(torch.fft.fft(inputs) @ self.weight).flatten(1))


def test_complex_weights_are_trained_and_averaged(tmp_path):
    torch.manual_seed(0)
    inputs = torch.randn(32, 4)
    model, data = Spectral(), TensorDataset(inputs, (inputs[:, 0] > 0).long())
    trainer = Trainer(
        model, data, data, batch_size=8, epochs=3, lr=1e-2, ema_decay=0.5, average_best=2,
        clip_grad_norm=0.5, device="cpu", loggers=(), run_dir=tmp_path / "r",
    )  # fmt: skip
    before = model.weight.detach().clone()
    trainer.fit()
    moved = model.weight.detach() - before
    assert moved.real.abs().min() > 0
    assert moved.imag.abs().min() > 0
    averaged = trainer.assembly.step.ema.named()["weight"]
    assert averaged.is_complex()
    assert not torch.equal(averaged, before)
    assert not torch.equal(averaged, model.weight.detach())
    grads = [torch.tensor([3 + 4j, 0]), torch.tensor([12j])]
    assert float(total_norm(grads)) == 13


def test_the_average_is_apart_from_the_model_and_takes_no_gradient():
    module, ema = make_ema(0.5)
    assert not any(p.requires_grad for p in ema.average.engine.parameters())
    assert ema.average.engine.module[0].weight.data_ptr() != module[0].weight.data_ptr()
