import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.datasets import VolumeDataset
from deepseek.models import ModelEngine, UNet3D
from deepseek.parallel import watch as rank_watch
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.watch import GONE, Watch
from deepseek.parallel.world import World
from deepseek.trainer import SegmentationTask, Trainer
from deepseek.trainer.evaluation_pass import evaluate
from deepseek.trainer.precision import Precision


class Store(dict):
    def set(self, key, value):
        self[key] = value

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key):
        return self[key].encode()


class Frozen(Store):
    def check(self, keys):
        threading.Event().wait()


class Gone(Store):
    def check(self, keys):
        raise RuntimeError("Connection reset by peer")


@pytest.fixture
def watch(request):
    made = Watch(
        1, 2, getattr(request, "param", Store)(), "run", groups={}, start_timeout_s=600.0,
        timeout_s=120.0,
    )  # fmt: skip
    yield made
    made.close()


@pytest.mark.parametrize("first", [0, 40])
def test_the_first_step_of_a_process_has_the_long_limit_also_in_a_resumed_run(watch, first):
    for phase in ("the data of the next batch", "forward and backward passes"):
        watch.mark(phase, first if phase.startswith("the data") else None)
        assert watch.limit_s == 600
    watch.mark("the data of the next batch", first + 1)
    assert watch.limit_s == 120


@pytest.mark.parametrize("phase", ["a checkpoint", "the end of the run"])
def test_what_is_written_may_take_long(watch, phase):
    watch.mark("the data of the next batch", 0)
    watch.mark("the data of the next batch", 1)
    watch.mark(phase)
    assert watch.limit_s == 600
    watch.mark("evaluation")
    assert watch.limit_s == 120


@pytest.mark.parametrize("watch", [Frozen, Gone], indirect=True)
def test_a_store_that_does_not_answer_is_said_to_be_gone(watch, monkeypatch):
    monkeypatch.setattr(rank_watch, "STALE_S", 0.05)
    assert watch.explain() == GONE


# -- what takes long, and goes on ------------------------------------------------------------

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved. After the first beat the thread sleeps."""
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(rank_watch, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    monkeypatch.setattr(rank_watch, "BEAT_S", 3600.0)
    return clock


class Slow(nn.Linear):
    """Takes three seconds, and notes how long the rank has been at one thing then."""

    def __init__(self, clock, watch):
        super().__init__(4, 2)
        self._slow = (clock, watch, ages := [])
        self.ages = ages

    def forward(self, x):
        clock, watch, ages = self._slow
        clock.now_s += 3.0
        ages.append(watch._age_s())
        return super().forward(x)


def test_a_step_of_many_micro_batches_may_take_longer_than_the_limit(clock, watch, tmp_path):
    model = Slow(clock, watch)
    data = TensorDataset(torch.randn(128, 4), torch.arange(128) % 2)
    trainer = Trainer(
        model, data, batch_size=64, grad_accum_steps=64, max_steps=2, device="cpu", num_workers=0,
        predict_memory=False, loggers=[], run_dir=tmp_path / "run",
    )  # fmt: skip
    trainer.world._watch = watch
    trainer.fit()
    assert clock.now_s >= 2 * 64 * 3 > 2 * watch._timeout_s
    assert max(model.ages) == 3


def test_an_evaluation_of_many_windows_may_take_longer_than_the_limit(clock, watch, tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", (np.indices((4, 8, 200)).sum(0) % 2).astype(np.uint8))
    data = VolumeDataset(tmp_path, "patch_4x8x8", cache="off")
    engine = ModelEngine.wrap(UNet3D(1, 2, (2, 2)), data.spec).eval()
    ages = []

    def take_three_seconds(*_):
        clock.now_s += 3.0
        ages.append(watch._age_s())

    engine.module.register_forward_pre_hook(take_three_seconds)
    world = World.alone(CPU)
    world._watch = watch
    batch, _ = data.evaluation_view().get_batch([0], 0)
    exact = Precision("fp32", "cpu", "to compare")
    evaluate(ParallelModel(engine, world), [batch], SegmentationTask(2), exact, False)
    assert len(ages) > 4
    assert max(ages) == 3
