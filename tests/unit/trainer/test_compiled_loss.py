"""The loss of a part that is compiled where the rest of a step is not."""

import types

import numpy as np
import pytest
import torch

from deepseek.config import TrainerConfig
from deepseek.datasets import TokenDataset
from deepseek.errors import ConfigError
from deepseek.models import GPT
from deepseek.trainer import Trainer
from deepseek.trainer.graph import StepGraph
from deepseek.trainer.loss_parts import compiles_loss
from deepseek.trainer.precision import Precision

NAMES = [str(number) for number in range(50)]


def world(device="cuda", size=1):
    return types.SimpleNamespace(
        device=torch.device(device), is_distributed=size > 1, size=size
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "where", "is_compiled"),
    [
        ({}, world(), True),
        ({}, world("cpu"), False),
        ({}, world(size=2), False),
        ({"loss_chunks": 1}, world(), False),
        ({"deterministic": True}, world(), False),
        ({"sequence_length_ramp": [8, 8, 100]}, world(), False),
        ({"compile_loss": False}, world(), False),
        ({"compile_loss": True}, world("cpu"), True),
    ],
)
def test_it_is_compiled_by_itself_where_that_is_safe(settings, where, is_compiled):
    config = TrainerConfig(**{"loss_chunks": 8, **settings})
    assert compiles_loss(config, where, Precision("bf16", "cuda", "")) is is_compiled


def test_fp8_is_left_alone():
    config = TrainerConfig(loss_chunks=8)
    assert not compiles_loss(config, world(), Precision("fp8", "cuda", ""))


@pytest.mark.parametrize(("chunks", "size"), [(1, 1), (8, 2)])
def test_it_is_refused_where_it_cannot_be(chunks, size):
    config = TrainerConfig(loss_chunks=chunks, compile_loss=True)
    with pytest.raises(ConfigError, match=f"loss_chunks={chunks}, .* and {size} processes"):
        compiles_loss(config, world("cpu", size), Precision("fp32", "cpu", ""))


def train(folder, **settings):
    torch.manual_seed(0)
    model = GPT(context_length=20, num_classes=50, num_layers=1, dim=32, heads=2)
    data = TokenDataset(np.arange(20 * 20 + 1) * 7 % 50, 20, NAMES)
    chosen = {"batch_size": 8, "epochs": 2, "precision": "fp32", "loss_chunks": 3, "lr": 1e-3}
    trainer = Trainer(
        model, data, run_dir=folder, loggers=("jsonl",), device="cpu", num_workers=0,
        **{**chosen, **settings},
    )  # fmt: skip
    trainer.fit()
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize(
    "settings",
    [
        {"memory": "pointwise", "precision": "bf16"},
        pytest.param({"memory": "selective"}, marks=pytest.mark.long),
        pytest.param({"memory": 0.6, "keep_graph": True}, marks=pytest.mark.long),
        pytest.param({"grad_accum_steps": "auto", "ema_decay": 0.9}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_compiled_loss_learns_the_same(settings, tmp_path):
    eager = train(tmp_path / "eager", **settings)
    compiled = train(tmp_path / "compiled", compile_loss=True, **settings)
    tolerance = 5e-3 if settings.get("precision") == "bf16" else 2e-5
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=0, atol=tolerance)
    graph = compiled.assembly.step.graph
    # 20 tokens are parts of 7, 7 and 6; the last batch, of 4 samples, is not compiled
    assert graph.num_graphs == 2
    assert graph.compiles_loss
    assert eager.assembly.step.graph.num_graphs == 0


def test_a_resumed_run_goes_the_same_way(tmp_path):
    # three steps an epoch, the third of 4 samples: the resumed run begins with that one
    settings = {"compile_loss": True, "checkpoint_every": 2, "keep_checkpoints": 9}
    whole = train(tmp_path / "run", **settings)
    torch._dynamo.reset()
    resumed = train(tmp_path / "run", resume=tmp_path / "run/checkpoints/step_2", **settings)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.assembly.step.graph.num_graphs == 2


def test_what_cannot_be_compiled_runs_as_before_and_warns_once(tmp_path, monkeypatch):
    def fail(graph, *args):
        raise RuntimeError("no compiler is found\nhere")

    eager = train(tmp_path / "eager")
    monkeypatch.setattr(StepGraph, "_compile", fail)
    said = []
    monkeypatch.setattr(Trainer, "warn", lambda trainer, text: said.append(text))
    found = train(tmp_path / "compiled", compile_loss=True)
    [text] = [text for text in said if "loss of a part cannot be compiled" in text]
    assert "no compiler is found" in text
    assert torch.equal(weights(found), weights(eager))
    assert not found.assembly.step.graph.compiles_loss
