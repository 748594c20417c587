import json

import pytest
import torch

from deepseek.checkpoint import Checkpoint, CheckpointStore, load_checkpoint
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
