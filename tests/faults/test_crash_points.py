"""A process that ends at the k-th write, flush or rename of a save leaves a whole checkpoint."""

import pytest
import torch

from deepseek.checkpoint import Checkpoint, CheckpointStore
from deepseek.trainer.chaos.crash import save_and_crash


def make_checkpoint(step, salt=0):
    generator = torch.Generator().manual_seed(step * 10 + salt)
    tensors = {
        group: {"a": torch.randn(300, generator=generator)} for group in ("model", "optimizer")
    }
    return Checkpoint(step, tensors, {"step": step, "salt": salt})


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("step", [3, 2])  # a new step; a step that is there already
def test_every_crash_point_leaves_a_whole_checkpoint(tmp_path, step, half):
    new = make_checkpoint(step, salt=1)
    for number in range(1, 100):
        folder = tmp_path / str(number)
        for old in (1, 2):
            CheckpointStore(folder, keep=2).save(make_checkpoint(old))
        crashed = save_and_crash(folder, new, number, half=half)
        loaded = CheckpointStore(folder, keep=2).load_latest()
        committed = [make_checkpoint(2), new]
        expected = next(c for c in committed if c.state == loaded.state)
        for group, tensors in expected.tensors.items():
            assert torch.equal(tensors["a"], loaded.tensors[group]["a"])
        CheckpointStore(folder, keep=2).save(make_checkpoint(9))  # and goes on from there
        assert CheckpointStore(folder).load_latest().step == 9
        if not crashed:
            assert loaded.state == new.state
            break
    assert number > 15
