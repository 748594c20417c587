"""A launch that is restarted finds the runs that it began, and no others."""

import itertools
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.errors import ConfigError, PreemptedError
from deepseek.trainer import Callback, Trainer, opening


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that puts this process where one of a launch begins."""
    monkeypatch.chdir(tmp_path)
    attempts = itertools.count()

    def again(launch="job.1"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(next(attempts)))
        monkeypatch.setattr(opening, "_numbers", itertools.count())
        monkeypatch.setattr(opening, "_begun", set())

    again()
    return again


class StopAt(Callback):
    def __init__(self, step):
        self.at = step

    def on_step_end(self, trainer, result):
        if trainer.step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


class Fail(Callback):
    """Ends as a kill does: nothing is saved on the way out."""

    def on_step_end(self, trainer, result):
        if trainer.step == 2:
            raise RuntimeError("killed")


def make_run(**settings):
    inputs = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, inputs.argmax(1))
    defaults = {"epochs": 2, "batch_size": 8, "loggers": ("jsonl",), "num_workers": 0}
    defaults |= {"log_every": 1, "lr": 0.01, "precision": "fp32"}
    return Trainer(nn.Linear(3, 3), data, **{**defaults, **settings})


def test_a_restarted_launch_that_skips_a_finished_run_dir_does_not_get_it(start):
    make_run(run_dir="cv/fold_0").fit()
    with pytest.raises(PreemptedError):
        make_run(run_dir="cv/fold_1", callbacks=[StopAt(4)]).fit()
    start()  # fold 0 is finished and skipped, fold 1 is the first run of this process
    resumed = make_run(run_dir="cv/fold_1")
    resumed.fit()
    assert resumed.folder.path.samefile("cv/fold_1")
    events = [event["kind"] for event in resumed.folder.read_events()]
    assert events.count("resume") == 1
    new = make_run(run_dir="cv/fold_2")
    new.fit()
    assert new.folder.path.samefile("cv/fold_2")
    assert "resume" not in [event["kind"] for event in new.folder.read_events()]


def test_runs_without_a_folder_of_their_own_are_found_by_their_turn(start):
    make_run(output="runs").fit()
    with pytest.raises(PreemptedError):
        make_run(output="runs", callbacks=[StopAt(4)]).fit()
    start()
    found = [make_run(output="runs") for _ in range(2)]
    for trainer in found:
        trainer.fit()
    assert [trainer.folder.path.name for trainer in found] == ["run-1", "run-2"]
    start("job")  # another launch, whose name begins another's
    other = make_run(output="runs")
    other.fit()
    assert other.folder.path.name == "run-3"


def test_a_restart_does_not_begin_a_finished_run_without_checkpoints_anew(start):
    make_run(run_dir="x", checkpoint_every=None).fit()
    start()
    with pytest.raises(ConfigError, match="holds a run already"):
        make_run(run_dir="x", checkpoint_every=None).fit()
    assert '"train"' in Path("x/metrics.jsonl").read_text()


def test_a_second_run_in_a_run_dir_is_refused_in_a_launch_too(start):
    make_run(run_dir="x").fit()
    with pytest.raises(ConfigError, match="holds a run already"):
        make_run(run_dir="x").fit()


def test_a_restart_does_not_go_back_to_the_named_checkpoint_again(start):
    settings = {"run_dir": "x", "checkpoint_every": 1, "keep_checkpoints": 2}
    make_run(**settings, keep_every=2).fit()
    start("job.2")
    resume = "x/checkpoints/step_2"
    again = {"resume": resume, "checkpoint_every": 1, "keep_checkpoints": 2}
    with pytest.raises(PreemptedError):
        make_run(**again, callbacks=[StopAt(5)]).fit()
    names = sorted(path.name for path in Path("x/checkpoints").glob("step_*"))
    assert names == ["step_4", "step_5"]  # step_2 has made room
    start("job.2")
    resumed = make_run(**again)
    resumed.fit()
    steps = [e["step"] for e in resumed.folder.read_events() if e["kind"] == "resume"]
    assert steps == [2, 5]


def test_another_launch_goes_back_to_the_named_checkpoint(start):
    make_run(run_dir="x", checkpoint_every=1, keep_checkpoints=9).fit()
    for launch in ("job.2", "job.3"):
        start(launch)
        resumed = make_run(resume="x/checkpoints/step_2", checkpoint_every=1, keep_checkpoints=9)
        resumed.fit()
    steps = [e["step"] for e in resumed.folder.read_events() if e["kind"] == "resume"]
    assert steps == [2, 2]


def test_a_launch_of_the_same_name_says_that_it_does_not_go_back_again(start, monkeypatch):
    def by_hand(step=2, **settings):
        start("job.2")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
        resume = f"x/checkpoints/step_{step}"
        trainer = make_run(resume=resume, checkpoint_every=1, keep_checkpoints=9, **settings)
        trainer.fit()
        return [e["step"] for e in trainer.folder.read_events() if e["kind"] == "resume"]

    make_run(run_dir="x", checkpoint_every=1, keep_checkpoints=9).fit()
    with pytest.raises(PreemptedError):
        by_hand(callbacks=[StopAt(4)])
    with pytest.warns(
        UserWarning, match=r"launch job\.2 has gone back to step_2 before: it goes on"
    ):
        assert by_hand() == [2, 4]
    with pytest.raises(
        ConfigError, match=r"job\.2 has gone back to step_2 .* is finished"
    ) as caught:
        by_hand()
    assert "choose another --rdzv-id" in str(caught.value)
    assert by_hand(step=3) == [2, 4, 3]
    assert by_hand() == [2, 4, 3, 2]  # to another one than before


def test_a_restart_before_the_first_checkpoint_begins_anew_in_its_run_dir(start):
    with pytest.raises(RuntimeError, match="killed"):
        make_run(run_dir="x", callbacks=[Fail()]).fit()
    start("job.2")
    with pytest.raises(ConfigError, match="holds a run already"):  # another launch's
        make_run(run_dir="x").fit()
    start()
    trainer = make_run(run_dir="x")
    trainer.fit()
    records = [r for r in trainer.folder.metrics.read_text().splitlines() if '"train"' in r]
    assert len(records) == 6
    assert [event["kind"] for event in trainer.folder.read_events()].count("finish") == 1
