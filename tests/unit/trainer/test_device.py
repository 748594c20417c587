"""How many CPU threads a step computes with."""

import pytest
import torch
from torch import nn

from deepseek.trainer.device import choose_cpu_threads, cpu_threads
from deepseek.trainer.estimate import estimate_step


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with cpu_threads(2):
        yield


def test_small_operators_get_one_thread_and_large_ones_all(two_threads):
    small = estimate_step(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), (8,))
    large = estimate_step(nn.Sequential(nn.Linear(2048, 2048), nn.ReLU()), (2048,))
    assert small is not None
    assert large is not None
    assert choose_cpu_threads(64 * small.forward_flops, small.num_ops) == 1
    assert choose_cpu_threads(64 * large.forward_flops, large.num_ops) == 2


def test_the_environment_has_the_last_word(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_cpu_threads(1.0, 100) == 2


def test_threads_are_put_back_after_an_error(two_threads):
    with pytest.raises(RuntimeError), cpu_threads(1):
        raise RuntimeError
    assert torch.get_num_threads() == 2
