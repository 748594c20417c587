import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.datasets import DataLoader
from deepseek.trainer.boundary import SMALL_NUMEL, Boundary


def make_boundary():
    module = nn.BatchNorm1d(3)
    module.register_buffer("large", torch.zeros(SMALL_NUMEL + 1))
    data = TensorDataset(torch.randn(12, 3), torch.zeros(12).long())
    loader = DataLoader(data, batch_size=4)
    return module, loader, Boundary(dict(module.named_buffers()), loader)


def test_a_step_that_is_tried_again_finds_buffers_and_generators_as_they_were():
    module, _, boundary = make_boundary()
    boundary.open(is_step=True)
    drawn = []
    for _ in range(2):
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
        module(torch.randn(8, 3))
        module.large.add_(1)
        boundary.rewind()
        assert not module.running_mean.any()
        assert not module.large.any()
        assert int(module.num_batches_tracked) == 0
    assert drawn[0] == drawn[1]


def test_while_a_step_is_under_way_a_checkpoint_sees_the_state_before_it():
    module, loader, boundary = make_boundary()
    boundary.open(is_step=True)
    next(iter(loader))
    module(torch.randn(8, 3))
    assert not boundary.buffers()["running_mean"].any()
    assert boundary.data["position"] == 0
    boundary.close()
    assert boundary.buffers()["running_mean"].any()


def test_a_large_buffer_that_nobody_wrote_to_is_not_copied_again():
    module, _, boundary = make_boundary()
    boundary.open(is_step=True)
    kept = boundary._kept["large"]
    version = kept._version
    boundary.close()
    boundary.open(is_step=True)
    assert kept._version == version
    module.large.add_(1)
    boundary.close()
    boundary.open(is_step=True)
    assert kept._version > version


def test_generators_that_the_step_does_not_draw_from_are_read_all_the_same_for_an_evaluation():
    _, _, boundary = make_boundary()
    for _ in range(4):
        boundary.open(is_step=True)
        boundary.close()
    random.random()
    boundary.open(is_step=False)
    expected = random.random()
    boundary.rewind()
    assert random.random() == expected
