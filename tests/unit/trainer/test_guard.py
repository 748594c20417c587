"""NaN and Inf anywhere are found in the same step, before the update."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.errors import DivergedError
from deepseek.trainer import Trainer
from deepseek.trainer.chaos.poison import PLACES, Poison
from deepseek.trainer.run_folder import RunFolder

QUIET = {"loggers": ("jsonl",), "num_workers": 0, "batch_size": 8, "lr": 1e-2}


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def make_data(count=64):
    torch.manual_seed(1)
    return TensorDataset(torch.randn(count, 6), torch.randint(0, 3, (count,)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("at", [1, 4, 9])
def test_a_poisoned_step_ends_the_run_before_its_update(tmp_path, place, value, at):
    poison = Poison(place, value, at, seed=at)
    run = tmp_path / "r"
    trainer = Trainer(
        make_net(), make_data(), epochs=2, run_dir=run, callbacks=[poison],
        checkpoint_every=1, keep_checkpoints=50, **QUIET,
    )  # fmt: skip
    with pytest.raises(DivergedError, match=f"step {at + 1}: "):
        trainer.fit()
    for weight, before in zip(trainer.model.parameters(), poison.weights, strict=True):
        assert torch.equal(weight.nan_to_num(7.0), before.nan_to_num(7.0))
    event = next(e for e in RunFolder(run).read_events() if e["kind"] == "bad_step")
    assert (event["step"], event["action"]) == (at, "abort")
    checkpoint = trainer.saving.store.load_latest()
    assert checkpoint.step == at
    for group in checkpoint.tensors.values():
        assert all(bool(tensor.isfinite().all()) for tensor in group.values())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_goes_on_past_a_bad_step_and_stays_finite(tmp_path, place, policy):
    run = tmp_path / "r"
    trainer = Trainer(
        make_net(), make_data(), make_data(), epochs=3, run_dir=run, on_bad_step=policy,
        callbacks=[Poison(place, math.nan, 13)], **QUIET,
    )  # fmt: skip
    trainer.fit()
    assert trainer.step == 24
    event = next(e for e in RunFolder(run).read_events() if e["kind"] == "bad_step")
    is_lasting = place in ("weight", "optimizer")
    assert event["action"] == ("rollback" if is_lasting else policy)
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.model.state_dict().values())


def test_a_batch_is_skipped_where_nothing_is_saved_yet_to_roll_back_to(tmp_path):
    trainer = Trainer(
        make_net(), make_data(), epochs=1, run_dir=tmp_path / "r", on_bad_step="rollback",
        callbacks=[Poison("loss", math.nan, 2)], **QUIET,
    )  # fmt: skip
    trainer.fit()
    assert trainer.step == 8
    assert "nothing is saved yet" in (tmp_path / "r" / "log.txt").read_text()


def test_a_skipped_batch_leaves_no_trace(tmp_path):
    """A run that skips a batch equals one that was told to skip it: weights and buffers."""
    runs = []
    for value in (math.nan, math.inf):
        trainer = Trainer(
            make_net(), make_data(), epochs=2, run_dir=tmp_path / str(value), on_bad_step="skip",
            callbacks=[Poison("batch", value, 5)], **QUIET,
        )  # fmt: skip
        trainer.fit()
        runs.append(trainer.model.state_dict())
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), name


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_the_journal_is_replayed_on_resume(tmp_path, policy):
    """The fault does not come back after the resume; what was decided then is decided again."""
    settings = {"epochs": 4, "on_bad_step": policy, **QUIET}
    whole = Trainer(
        make_net(), make_data(), run_dir=tmp_path / "r",
        callbacks=[Poison("loss", math.nan, 13)], keep_checkpoints=9, **settings,
    )  # fmt: skip
    whole.fit()
    first = tmp_path / "r" / "checkpoints" / "step_8"
    again = Trainer(make_net(), make_data(), resume=first, run_dir=tmp_path / "r", **settings)
    again.fit()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_a_spike_is_a_bad_step(tmp_path):

    run = tmp_path / "r"
    trainer = Trainer(
        make_net(), make_data(256), epochs=1, run_dir=run, on_bad_step="skip", loss_spike=20.0,
        callbacks=[Poison("loss", 100.0, 25)], **QUIET,
    )  # fmt: skip
    trainer.fit()
    (event,) = [e for e in RunFolder(run).read_events() if e["kind"] == "bad_step"]
    assert event["step"] == 25
    assert "times the median" in event["detail"]


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path):
    data = TensorDataset(torch.full((64, 6), math.nan), torch.zeros(64, dtype=torch.long))
    trainer = Trainer(
        make_net(), data, run_dir=tmp_path / "r", on_bad_step="skip", max_bad_steps=3, **QUIET
    )
    with pytest.raises(DivergedError, match="step 4: "):
        trainer.fit()
