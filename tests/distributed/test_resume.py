"""A run goes on from where it stopped, on the same layout or on another."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.ranks import run_ranks, train

from deepseek.checkpoint import load_checkpoint

PAIRS = [
    ("dp2-tp2-pp2", 8, "none", 1),
    ("none", 1, "dp4", 4),
    pytest.param("fsdp2-tp2", 4, "pp2", 2, marks=pytest.mark.long),
    ("pp2", 2, "fsdp4", 4),
    ("dp2", 2, "tp2", 2),
    pytest.param("fsdp3", 3, "dp2-fsdp2", 4, marks=pytest.mark.long),
]
SETTINGS = {"ema_decay": 0.9, "checkpoint_every": 4, "keep_checkpoints": 9}


def run(size, plan, folder, run_dir, kind="gpt", **settings):
    if size == 1:
        return train(kind, run_dir, parallel=plan, **settings)
    return run_ranks(
        size, train, kind, run_dir, parallel=plan, folder=folder / f"ranks_{plan}", **settings
    )[0]


@pytest.mark.parametrize(("first", "size", "second", "other_size"), PAIRS)
def test_another_layout_goes_on_with_the_same_samples_and_weights(
    first, size, second, other_size, tmp_path
):
    whole = train("gpt", tmp_path / "whole", max_steps=12, **SETTINGS)
    begun = run(size, first, tmp_path, tmp_path / "run", max_steps=12, **SETTINGS)
    for folder in (tmp_path / "run" / "checkpoints").glob("step_*"):
        if folder.name != "step_4":
            folder.rename(folder.with_name(f"later_{folder.name}"))
    resumed = run(
        other_size, second, tmp_path, tmp_path / "run", max_steps=12, resume=True, **SETTINGS
    )
    # each loss is that of the same batch: the order of samples is the same, bit for bit
    assert resumed[0] == pytest.approx(whole[0][4:], abs=1e-5)
    assert begun[0] == pytest.approx(whole[0], abs=1e-5)
    one, many = load_file(tmp_path / "whole/model.bin"), load_file(tmp_path / "run/model.bin")
    for name, tensor in one.items():
        torch.testing.assert_close(many[name], tensor, rtol=0, atol=2e-4)


@pytest.mark.parametrize("plan", ["dp2", "fsdp2", "tp2", "pp2", "cp2"])
def test_the_same_layout_goes_on_bit_for_bit(plan, tmp_path):
    settings = {**SETTINGS, "dropout": 0.2, "max_steps": 10, "schedule": "constant"}
    whole = run(2, plan, tmp_path, tmp_path / "whole", **settings)
    first = run(2, plan, tmp_path / "a", tmp_path / "run", **{**settings, "max_steps": 8})
    assert len(first[0]) == 8
    for folder in (tmp_path / "run" / "checkpoints").glob("step_8"):
        folder.rename(folder.with_name("later"))
    resumed = run(2, plan, tmp_path / "b", tmp_path / "run", resume=True, **settings)
    assert resumed[0] == whole[0][4:]
    assert resumed[1] == whole[1][4:]
    for group in ("model", "optimizer", "ema"):
        one, two = (
            load_checkpoint(tmp_path / r / "checkpoints/step_10").tensors[group]
            for r in ("whole", "run")
        )
        assert sorted(one) == sorted(two)
        for name in one:
            assert torch.equal(one[name], two[name]), name


def test_ranks_that_draw_as_many_numbers_as_they_have_samples_go_on_bit_for_bit(tmp_path):
    # 15 samples are 8 and 7; the last batch of an epoch, of 10, is 5 and 5
    settings = {"batch_size": 15, "grad_accum_steps": 1, "max_steps": 8, "schedule": "constant"}
    settings |= {"checkpoint_every": 3, "keep_checkpoints": 9}
    whole = run(2, "dp2", tmp_path, tmp_path / "whole", kind="noisy", **settings)
    run(2, "dp2", tmp_path / "a", tmp_path / "run", kind="noisy", **{**settings, "max_steps": 3})
    states = load_checkpoint(tmp_path / "run/checkpoints/step_3").own_state
    assert states["0"]["random"]["torch"] != states["1"]["random"]["torch"]
    resumed = run(2, "dp2", tmp_path / "b", tmp_path / "run", kind="noisy", resume=True, **settings)
    assert resumed[0] == whole[0][3:]
    one, two = (load_checkpoint(tmp_path / r / "checkpoints/step_8") for r in ("whole", "run"))
    for name, tensor in one.tensors["model"].items():
        assert torch.equal(tensor, two.tensors["model"][name]), name
    for rank, own in one.own_state.items():
        assert own["random"]["torch"] == two.own_state[rank]["random"]["torch"]


def test_ranks_write_their_own_part_and_all_is_in_one_manifest(tmp_path):
    run(2, "fsdp2", tmp_path, tmp_path / "run", max_steps=4, **SETTINGS)
    folder = tmp_path / "run/checkpoints/step_4"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert sorted(listed) == sorted(p.name for p in folder.iterdir() if p.name != "manifest.json")
    for group in ("model", "optimizer", "ema"):
        sizes = [listed[f"{group}.rank_{rank}.safetensors"]["bytes"] for rank in range(2)]
        assert max(sizes) < 1.3 * min(sizes)
    assert not [p for p in folder.iterdir() if p.suffix not in (".safetensors", ".json")]


def test_what_a_killed_save_of_more_ranks_has_left_is_not_in_the_model(tmp_path):
    left = tmp_path / "run" / ".model.bin.parts"
    left.mkdir(parents=True)
    (left / "rank_5.safetensors").write_bytes(b"a part of another model")
    run(2, "fsdp2", tmp_path, tmp_path / "run", max_steps=2, checkpoint_every=None)
    assert len(load_file(tmp_path / "run/model.bin")) > 4
    assert not left.exists()


def test_a_damaged_part_of_one_rank_sends_all_to_the_checkpoint_before(tmp_path):
    run(2, "fsdp2", tmp_path, tmp_path / "run", max_steps=8, **SETTINGS)
    path = Path(tmp_path / "run/checkpoints/step_8/model.rank_1.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    resumed = run_ranks(
        2, train, "gpt", tmp_path / "run", parallel="fsdp2", folder=tmp_path / "again",
        max_steps=8, resume=True, **SETTINGS,
    )  # fmt: skip
    assert [len(losses) for losses, _, _ in resumed] == [4, 4]
    assert (tmp_path / "run/checkpoints/damaged_step_8").is_dir()
