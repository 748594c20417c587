import errno
import json
import os
import threading
from dataclasses import replace

import pytest
import torch

from deepseek.checkpoint import BackgroundSaver, Checkpoint, CheckpointStore, load_checkpoint
from deepseek.checkpoint import manifest as manifest_file
from deepseek.checkpoint.durable_file import Fingerprint, fingerprint
from deepseek.checkpoint.manifest import read_manifest, write_manifest
from deepseek.errors import CheckpointError


def make_checkpoint(step):
    torch.manual_seed(step)
    shared = torch.randn(4)
    return Checkpoint(
        step,
        {
            "model": {"a": torch.randn(3, 5).bfloat16(), "tied": shared, "also_tied": shared},
            "optimizer": {"0/exp_avg": torch.randn(3, 5), "0/step": torch.tensor(7.0)},
        },
        {"text": "é", "number": 0.1 + 0.2},
    )


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    saved = make_checkpoint(3)
    CheckpointStore(tmp_path).save(saved)
    loaded = CheckpointStore(tmp_path).load_latest()
    assert loaded.step == 3
    assert loaded.state == saved.state
    assert loaded.tensors.keys() == saved.tensors.keys()
    for group, tensors in saved.tensors.items():
        for name, tensor in tensors.items():
            other = loaded.tensors[group][name]
            assert torch.equal(other, tensor)
            assert other.dtype == tensor.dtype


def test_only_the_newest_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (5, 10, 100):
        store.save(make_checkpoint(step))
    assert [path.name for path in store.steps()] == ["step_100", "step_10"]
    assert (tmp_path / "latest").read_text() == "step_100\n"


def test_every_flipped_bit_is_noticed(tmp_path):
    CheckpointStore(tmp_path).save(make_checkpoint(1))
    folder = tmp_path / "step_1"
    generator = torch.Generator().manual_seed(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for _ in range(12):
            at = int(torch.randint(len(content), (1,), generator=generator))
            broken = bytearray(content)
            broken[at] ^= 1 << int(torch.randint(8, (1,), generator=generator))
            path.write_bytes(broken)
            with pytest.raises(CheckpointError):
                load_checkpoint(folder)
        path.write_bytes(content)
    assert load_checkpoint(folder).step == 1


def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_used(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))
    store.save(make_checkpoint(2))
    (tmp_path / "step_2" / "model.safetensors").write_bytes(b"short")
    with pytest.warns(UserWarning, match="set aside"):
        assert store.load_latest().step == 1
    assert (tmp_path / "damaged_step_2").is_dir()


def test_an_unfinished_save_is_not_a_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))
    (tmp_path / ".writing_2").mkdir()
    assert store.load_latest().step == 1


def test_a_newer_format_is_refused_with_the_way_out(tmp_path):
    CheckpointStore(tmp_path).save(make_checkpoint(1))
    path = tmp_path / "step_1" / "manifest.json"
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "format_version": 99}))
    with pytest.raises(CheckpointError, match="format_version=99"):
        load_checkpoint(tmp_path / "step_1")


def test_no_checkpoint_at_all_is_an_error_that_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        CheckpointStore(tmp_path).load_latest()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_checkpoint_that_cannot_be_read_costs_only_itself(number, tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))
    store.save(make_checkpoint(2))

    def read(path):
        if path.parent.name == "step_2" and path.suffix == ".safetensors":
            raise OSError(number, os.strerror(number), str(path))
        return fingerprint(path)

    monkeypatch.setattr(manifest_file, "fingerprint", read)
    with pytest.raises(CheckpointError, match=f"cannot be read: .*{os.strerror(number)}"):
        load_checkpoint(tmp_path / "step_2")
    with pytest.warns(UserWarning, match="set aside as damaged_step_2"):
        assert store.load_latest().step == 1


def test_a_manifest_of_the_files_of_four_thousand_ranks_is_read(tmp_path):
    groups = ("model", "optimizer", "own_state")
    names = [f"{group}.rank_{rank}.safetensors" for rank in range(4000) for group in groups]
    write_manifest(tmp_path, 7, dict.fromkeys(names, Fingerprint(10**10, "0" * 32)))
    found = read_manifest(tmp_path)
    assert (found.step, len(found.files)) == (7, len(names))


class Waiting(CheckpointStore):
    """Writes when it is told to."""

    def __init__(self, folder):
        super().__init__(folder)
        self.may_write = threading.Event()

    def save(self, checkpoint, keep_too=()):
        assert self.may_write.wait(60)
        return super().save(checkpoint, keep_too)


def test_what_a_callback_changes_during_a_save_is_not_in_it(tmp_path):
    store = Waiting(tmp_path)
    saver = BackgroundSaver(store)
    seen, own = [1], {"drawn": [1]}
    try:
        saver.save(replace(make_checkpoint(3), state={"callbacks": [seen]}, own_state=own))
        seen.append(2)
        own["drawn"].append(2)
    finally:
        store.may_write.set()
        saver.wait()
        saver.close()
    found = store.load_latest()
    assert found.state == {"callbacks": [[1]]}
    assert found.own_state == {"0": {"drawn": [1]}}
