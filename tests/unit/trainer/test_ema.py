import copy

import torch
from torch import nn

from deepseek.models import ModelEngine
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.world import World
from deepseek.trainer.ema import ExponentialMovingAverage


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


def test_the_average_is_apart_from_the_model_and_takes_no_gradient():
    module, ema = make_ema(0.5)
    assert not any(p.requires_grad for p in ema.average.engine.parameters())
    assert ema.average.engine.module[0].weight.data_ptr() != module[0].weight.data_ptr()
