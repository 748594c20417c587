"""Loggers never hold up a run, and lose nothing that `metrics.jsonl` does not have."""

import json
import time

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.trainer import LOGGERS, Logger, Trainer
from deepseek.trainer.loggers import BackgroundLogger


def fit(run, **settings):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 6), torch.randint(0, 3, (64,)))
    trainer = Trainer(
        nn.Linear(6, 3), data, data, batch_size=8, run_dir=run, num_workers=0,
        **{"epochs": 3, "log_every": 1, "loggers": ("jsonl",), **settings},
    )  # fmt: skip
    trainer.fit()
    return trainer


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Slow(Logger):
    def __init__(self, folder):
        time.sleep(30)

    def log(self, record):
        raise AssertionError

    def close(self):
        raise AssertionError


def test_a_logger_that_hangs_costs_its_time_at_the_end_only(tmp_path):
    LOGGERS.register("slow_for_test")(Slow)
    began = time.monotonic()
    fit(tmp_path / "r", loggers=("slow_for_test",))
    assert time.monotonic() - began < 25  # of the 30 that it hangs
    assert len(read_lines(tmp_path / "r/metrics.jsonl")) == 24 + 3
    warnings = [e for e in read_lines(tmp_path / "r/events.jsonl") if e["kind"] == "warning"]
    assert any("27 records were not sent" in e["message"] for e in warnings)


def test_an_unwritable_tensorboard_folder_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("deepseek.trainer.loggers.CLOSE_S", 120.0)  # its first import takes long
    run = tmp_path / "r"
    run.mkdir()
    (run / "tensorboard").write_text("a file where a folder should be")
    fit(run, loggers=("tensorboard",))
    assert len(read_lines(run / "metrics.jsonl")) == 27
    (event,) = [e for e in read_lines(run / "events.jsonl") if e["kind"] == "warning"]
    assert "logger tensorboard: FileExistsError" in event["message"]


def test_more_records_than_the_queue_holds_are_counted():
    warned = []

    class Stuck(Slow):
        def __init__(self):
            time.sleep(3)

        def log(self, record): ...

        def close(self): ...

    logger = BackgroundLogger("stuck", Stuck, warned.append)
    for step in range(10_050):
        logger.log({"step": step})
    logger.close()
    assert "50 records were not sent" in warned[0]


def test_wandb_offline_keeps_its_id_over_a_resume(tmp_path):
    pytest.importorskip("wandb")
    run = tmp_path / "r"
    fit(run, loggers=("wandb",), wandb_mode="offline")
    first = json.loads((run / "wandb.json").read_text())
    assert first["step"] == 24
    assert list((run / "wandb").glob("offline-run-*"))
    fit(run, loggers=("wandb",), wandb_mode="offline", epochs=4, resume=True)
    assert json.loads((run / "wandb.json").read_text()) == {"id": first["id"], "step": 32}


def test_tensorboard_steps_never_go_backwards_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "r"
    fit(run, loggers=("tensorboard",), keep_checkpoints=9)
    second = int(time.time())
    while int(time.time()) == second:  # files are read in the order of the second in their names
        time.sleep(0.01)
    fit(run, loggers=("tensorboard",), resume=run / "checkpoints" / "step_8")
    events = EventAccumulator(str(run / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == list(range(1, 25))
