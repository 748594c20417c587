"""What is predicted of a GPU, as far as a machine without one can tell: torch's words are given."""

import types

import numpy as np
import pytest
import torch

from deepseek.datasets import TokenDataset
from deepseek.models import GPT
from deepseek.trainer import Trainer, footprint
from deepseek.trainer.held_bytes import bytes_beside, held_bytes, take_workspaces
from deepseek.trainer.throughput import available_memory_bytes

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
MIB = 1 << 20


def train(folder):
    model = GPT(context_length=16, num_classes=50, num_layers=1, dim=16, heads=2)
    data = TokenDataset(np.arange(8 * 16 + 1) % 50, 16, [str(number) for number in range(50)])
    trainer = Trainer(
        model, data, batch_size=4, max_steps=2, device="cpu", num_workers=0, run_dir=folder,
        loggers=("jsonl",),
    )  # fmt: skip
    trainer.fit()
    return trainer


def test_what_torch_holds_beside_the_run_is_counted(tmp_path, monkeypatch):
    trainer = train(tmp_path / "r")
    held = sum(held_bytes(trainer).values())
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held + 64 * MIB)
    assert bytes_beside(trainer) == 64 * MIB
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)  # weights on the host
    assert bytes_beside(trainer) == 0


def test_workspaces_are_taken_without_a_trace():
    with torch.no_grad():
        random = torch.get_rng_state()
        take_workspaces(CPU)
        assert torch.equal(torch.get_rng_state(), random)
        assert not torch.is_grad_enabled()


def test_what_others_hold_of_a_card_is_not_ours(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * MIB, 80 * MIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * MIB)
    assert available_memory_bytes(CUDA) == 15 * MIB


@pytest.mark.parametrize("left", [1.0, 0.5, None], ids=["enough", "too_little", "a_cpu"])
def test_a_run_warns_where_others_have_left_too_little(left, tmp_path, capsys, monkeypatch):
    trainer = train(tmp_path / "r")
    said, lines = [], []
    monkeypatch.setattr(trainer, "warn", said.append)
    monkeypatch.setattr(trainer.recorder, "console", types.SimpleNamespace(line=lines.append))
    peak = trainer.footprint.peak
    if left is not None:
        room = round(left * peak)
        monkeypatch.setattr(footprint, "available_memory_bytes", lambda device: room)
    footprint.announce_footprint(trainer)
    [line] = [line for line in lines if line.startswith("memory predicted")]
    assert ("left to this process" in line) == (left is not None)
    assert bool(said) == (left == 0.5)
    if said:
        assert f"above the {room / MIB:,.0f} MiB of this device that others leave: set" in said[0]
