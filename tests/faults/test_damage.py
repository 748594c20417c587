"""Damage anywhere in a checkpoint is noticed before use, and an older one is taken instead."""

import random

import pytest
import torch

from deepseek.checkpoint import Checkpoint, CheckpointStore, load_checkpoint
from deepseek.errors import CheckpointError
from deepseek.trainer.chaos.damage import DAMAGES, flip_bit

NUM_FLIPS = 500


def make_checkpoint(step):
    generator = torch.Generator().manual_seed(step)
    groups = ("model", "optimizer", "ema")
    tensors = {g: {"weight": torch.randn(40, 30, generator=generator)} for g in groups}
    return Checkpoint(step, tensors, {"step": step, "text": "é" * 40})


@pytest.fixture
def folder(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2):
        store.save(make_checkpoint(step))
    return tmp_path


def test_every_flipped_bit_is_noticed(folder):
    draws = random.Random(0)
    files = sorted((folder / "step_2").iterdir())
    for _ in range(NUM_FLIPS):
        path = draws.choice(files)
        flip_back = flip_bit(path, draws)
        with pytest.raises(CheckpointError):
            load_checkpoint(folder / "step_2")
        flip_back()
    assert load_checkpoint(folder / "step_2").step == 2


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json",
                                  "manifest.json"])  # fmt: skip
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_and_the_older_checkpoint_taken(folder, damage, name):
    DAMAGES[damage](folder / "step_2" / name, folder / "step_1")
    with pytest.warns(UserWarning, match="set aside as damaged_step_2"):
        assert CheckpointStore(folder).load_latest().step == 1
    assert (folder / "damaged_step_2").is_dir()


def test_a_checkpoint_under_another_name_is_refused(folder):
    (folder / "step_1").rename(folder / "step_7")
    with pytest.raises(CheckpointError, match="step 1: it was renamed"):
        load_checkpoint(folder / "step_7")
