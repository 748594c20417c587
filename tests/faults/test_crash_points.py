"""A process that ends at the k-th write, flush or rename of a save leaves a whole checkpoint."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from deepseek.checkpoint import Checkpoint, CheckpointStore, store

CRASHED = 137


def make_checkpoint(step, salt=0):
    generator = torch.Generator().manual_seed(step * 10 + salt)
    tensors = {
        group: {"a": torch.randn(300, generator=generator)} for group in ("model", "optimizer")
    }
    return Checkpoint(step, tensors, {"step": step, "salt": salt})


def crash_at(number, folder, checkpoint, half):
    """Save, and end the process at the `number`-th operation, before it or with half of it done."""
    count = 0

    def counted(function, torn=None):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                if half and torn is not None:
                    torn(*args)
                os._exit(CRASHED)
            return function(*args, **kwargs)

        return call

    def half_file(tensors, path):
        save_file(tensors, path)
        os.truncate(path, path.stat().st_size // 2)

    save_file = store.save_file
    store.save_file = counted(save_file, half_file)
    write_text, write_bytes = Path.write_text, Path.write_bytes
    Path.write_text = counted(write_text, lambda p, text: write_text(p, text[: len(text) // 2]))
    Path.write_bytes = counted(write_bytes, lambda p, b: write_bytes(p, b[: len(b) // 2]))
    os.fsync = counted(os.fsync)
    for name in ("rename", "replace", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
    store.shutil.rmtree = counted(store.shutil.rmtree)
    CheckpointStore(folder, keep=2).save(checkpoint)
    os._exit(0)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("step", [3, 2])  # a new step; a step that is there already
def test_every_crash_point_leaves_a_whole_checkpoint(tmp_path, step, half):
    context = multiprocessing.get_context("forkserver")
    new = make_checkpoint(step, salt=1)
    for number in range(1, 100):
        folder = tmp_path / str(number)
        for old in (1, 2):
            CheckpointStore(folder, keep=2).save(make_checkpoint(old))
        process = context.Process(target=crash_at, args=(number, folder, new, half))
        process.start()
        process.join()
        loaded = CheckpointStore(folder, keep=2).load_latest()
        committed = [make_checkpoint(2), new]
        expected = next(c for c in committed if c.state == loaded.state)
        for group, tensors in expected.tensors.items():
            assert torch.equal(tensors["a"], loaded.tensors[group]["a"])
        CheckpointStore(folder, keep=2).save(make_checkpoint(9))  # and goes on from there
        assert CheckpointStore(folder).load_latest().step == 9
        if process.exitcode == 0:
            assert loaded.state == new.state
            break
        assert process.exitcode == CRASHED
    assert number > 15
