"""A disk that is full, read-only or forbidden: training goes on, the last checkpoint survives."""

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from tests.faults.trials import make_trainer

from deepseek.checkpoint import CheckpointStore
from deepseek.errors import ConfigError, DeepSeekError, PreemptedError
from deepseek.trainer import Callback

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted: needs root and tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


class Fill(Callback):
    """Takes all but `left` bytes of the disk at step 5, and gives them back at step `until`."""

    def __init__(self, disk, left, until):
        self.ballast, self.left, self.until = disk / "ballast", left, until

    def on_step_end(self, trainer, result):
        if trainer.step == 5:
            trainer.saving.wait()
            free = shutil.disk_usage(self.ballast.parent).free
            with self.ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, free - self.left))
        if trainer.step == self.until:
            self.ballast.unlink()


@pytest.mark.parametrize("left", [0, 4096, 20_000, 60_000, 200_000, 500_000, MIB, 2 * MIB])
def test_training_goes_on_through_a_full_disk(small_disk, left):
    run = small_disk / "run"
    trainer = make_trainer(run, False, callbacks=[Fill(small_disk, left, until=10)])
    trainer.fit()
    newest = CheckpointStore(run / "checkpoints").load_latest()
    assert newest.step == trainer.step == 15
    resumed = make_trainer(run, True, epochs=4)
    resumed.fit()
    assert resumed.step == 20


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO])
def test_training_goes_on_while_the_folder_forbids_writing(tmp_path, monkeypatch, code):
    """Root may write anywhere: what a read-only or forbidden folder says is said in its place."""
    run = tmp_path / "run"
    mkdir = Path.mkdir

    def forbidden(path, *args, **kwargs):
        if path.name.startswith(".writing_") and 5 <= trainer.step < 10:
            raise OSError(code, os.strerror(code), str(path))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", forbidden)
    trainer = make_trainer(run, False)
    trainer.fit()
    assert CheckpointStore(run / "checkpoints").load_latest().step == 15
    warned = [e for e in trainer.folder.read_events() if e["kind"] == "warning"]
    assert os.strerror(code) in warned[0]["message"]


def test_a_run_on_a_read_only_disk_is_not_resumed_there_and_nothing_is_lost(small_disk):
    run = small_disk / "run"
    make_trainer(run, False, max_steps=7).fit()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DeepSeekError, match="Read-only file system"):
        make_trainer(run, True).fit()
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    make_trainer(run, True).fit()
    assert CheckpointStore(run / "checkpoints").load_latest().step == 15


def test_a_folder_that_forbids_writing_is_named_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="run folder cannot be made"):
        make_trainer(tmp_path / "file" / "run", False).fit()


@pytest.mark.parametrize("left", [0, 20_000])
def test_the_last_checkpoint_survives_a_disk_that_stays_full(small_disk, left):
    run = small_disk / "run"
    fill = Fill(small_disk, left, until=-1)
    trainer = make_trainer(run, False, callbacks=[fill])
    with contextlib.suppress(PreemptedError):  # exit code 75: the model file did not fit either
        trainer.fit()
    survivor = CheckpointStore(run / "checkpoints").load_latest()
    assert survivor.step >= 4
    fill.ballast.unlink()
    resumed = make_trainer(run, True)
    resumed.fit()
    assert resumed.step == 15
    assert all(bool(p.isfinite().all()) for p in resumed.model.parameters())
    assert torch.is_tensor(survivor.tensors["model"]["layers.0.weight"])
