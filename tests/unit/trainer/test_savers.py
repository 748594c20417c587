"""What saves memory beside activations: each by one setting, with exact resume."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.datasets import TokenDataset
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import GPT, ModelEngine
from deepseek.parallel.paper import paper_ranks
from deepseek.trainer import Trainer, lr_range_test
from deepseek.trainer.device import grow_segments
from deepseek.trainer.footprint import describe_savings

BACKWARD = {"optimizer_in_backward": True, "clip_grad_norm": None}


@pytest.fixture(autouse=True)
def eager():
    pytest.importorskip("torchao", reason="the extra memory")
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def make(run_dir, model=None, data=None, **settings):
    torch.manual_seed(0)
    if model is None:
        model = GPT(context_length=32, num_classes=50, num_layers=2, dim=64, heads=4, dropout=0.1)
    data = data or TokenDataset(np.arange(24 * 32 + 1) * 7 % 50, 32, [str(n) for n in range(50)])
    chosen = {
        "batch_size": 8, "max_steps": 6, "checkpoint_every": 3, "loggers": ["jsonl"],
        "device": "cpu", "num_workers": 0, "precision": "fp32", "lr": 1e-2,
        **settings,
    }  # fmt: skip
    return Trainer(model, data, run_dir=run_dir, **chosen)


def train(run_dir, **settings):
    trainer = make(run_dir, **settings)
    trainer.fit()
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten().float() for p in trainer.model.parameters()])


def losses(trainer):
    lines = (trainer.folder.path / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for line in lines if "loss" in (record := json.loads(line))]


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw8bit"},
        {"param_dtype": "bf16", "precision": "auto"},
        {"param_dtype": "bf16", "optimizer": "adamw8bit", "precision": "auto"},
        BACKWARD,
        {**BACKWARD, "optimizer": "adamw8bit", "ema_decay": 0.9},
    ],
    ids=str,
)
def test_a_resumed_run_is_the_one_that_was_not_stopped(settings, tmp_path):
    whole = train(tmp_path / "run", **settings)
    resume = tmp_path / "run/checkpoints/step_3"
    resumed = train(tmp_path / "run", resume=resume, **settings)
    assert torch.equal(weights(resumed), weights(whole))
    assert losses(whole)[-1] < losses(whole)[0]


def test_the_backward_pass_takes_the_bits_of_the_ordinary_step(tmp_path):
    plain = train(tmp_path / "plain", clip_grad_norm=None)
    found = train(tmp_path / "found", **BACKWARD)
    assert torch.equal(weights(found), weights(plain))
    budget = train(tmp_path / "budget", memory=0.7, **BACKWARD)  # tried before the first step
    assert torch.equal(weights(budget), weights(plain))
    assert found.footprint.gradients < 0.5 * plain.footprint.gradients
    assert found.footprint.peak - found.footprint.process < plain.footprint.peak - (
        plain.footprint.process
    )


def test_a_range_test_updates_in_the_backward_pass_too(tmp_path):
    found = [
        lr_range_test(make(tmp_path / "r", clip_grad_norm=None, **settings), num_steps=20)
        for settings in ({}, {"optimizer_in_backward": True})
    ]
    assert found[0].losses == found[1].losses


@pytest.mark.parametrize(
    ("settings", "share"),
    [({"optimizer": "adamw8bit"}, 0.3), ({"optimizer": "adafactor", "lr": 1e-3}, 0.1)],
)
def test_the_predicted_state_is_what_the_optimizer_keeps(settings, share, tmp_path):
    plain, found = train(tmp_path / "plain"), train(tmp_path / "found", **settings)
    for trainer in (plain, found):
        optimizer = trainer.assembly.step.optimizer
        tensors = [v for s in optimizer.state.values() for v in s.values() if v.numel() > 1]
        predicted = trainer.footprint.optimizer
        assert predicted == pytest.approx(sum(t.nbytes for t in tensors), rel=0.01)
    assert found.footprint.optimizer < share * plain.footprint.optimizer


def test_weights_in_bf16_halve_weights_and_gradients_and_make_a_file_that_predicts(tmp_path):
    plain = train(tmp_path / "plain", precision="bf16")
    found = train(tmp_path / "found", precision="auto", param_dtype="bf16")
    assert found.footprint.gradients * 2 == plain.footprint.gradients
    assert found.footprint.weights < 0.52 * plain.footprint.weights
    engine = ModelEngine.load(tmp_path / "found/model.bin")
    assert torch.isfinite(engine(torch.zeros(1, 32, dtype=torch.long)).float()).all()


def test_images_and_batch_norms_learn_with_both(tmp_path):
    inputs = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs[:32] += 0.5
    data = TensorDataset(inputs, (torch.arange(64) < 32).long())
    for name, settings in (
        ("8bit", {"optimizer": "adamw8bit"}),
        ("bf16", {"param_dtype": "bf16", "precision": "bf16"}),
    ):
        model = nn.Sequential(
            nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
        )  # fmt: skip
        trainer = train(tmp_path / name, model=model, data=data, max_steps=16, lr=1e-3, **settings)
        assert trainer.assembly.channels_last
        assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "adamw8bit"}, {"param_dtype": "bf16", "precision": "bf16"}],
    ids=str,
)
def test_channels_last_weights_resume_with_8_bits_and_in_bf16(settings, tmp_path):
    inputs = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, (torch.arange(48) < 24).long())

    def run(**more):
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 2),
        )  # fmt: skip
        return train(tmp_path / "run", model=model, data=data, **settings, **more)

    whole = run()
    assert whole.assembly.channels_last
    resumed = run(resume=tmp_path / "run/checkpoints/step_3")
    assert torch.equal(weights(resumed), weights(whole))


def test_a_run_with_adamw_goes_on_with_8_bits_and_not_the_other_way_round(tmp_path):
    whole = train(tmp_path / "run")
    resume = tmp_path / "run/checkpoints/step_3"
    packed = train(tmp_path / "run", resume=resume, optimizer="adamw8bit")
    assert packed.footprint.optimizer < 0.3 * whole.footprint.optimizer
    torch.testing.assert_close(weights(packed), weights(whole), rtol=0, atol=1e-2)
    with pytest.raises(CheckpointError, match="the saved optimizer is no AdamW"):
        train(tmp_path / "run", resume=tmp_path / "run/checkpoints/step_6", max_steps=9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"param_dtype": "bf16", "optimizer": "sgd"}, "param_dtype=bf16 with optimizer=sgd"),
        ({"param_dtype": "bf16"}, "param_dtype=bf16 with precision=fp32"),
        ({"param_dtype": "bf16", "precision": "bf16", "ema_decay": 0.9}, "ema_decay=0.9"),
        ({"optimizer_in_backward": True}, "clip_grad_norm=1.0 needs the norm of the whole"),
        ({**BACKWARD, "grad_accum_steps": 2}, "grad_accum_steps=2 adds up gradients"),
        ({**BACKWARD, "on_bad_step": "skip"}, "on_bad_step=skip takes back a step"),
        ({**BACKWARD, "loss_spike": 3.0}, "loss_spike=3.0 judges a step"),
        ({**BACKWARD, "keep_graph": True}, "keep_graph=true goes backward"),
        ({**BACKWARD, "precision": "fp16"}, "precision=fp16 looks for overflows"),
        ({**BACKWARD, "optimizer": "lamb"}, "optimizer=lamb needs the norm"),
        ({"offload": "optimizer"}, "offload=optimizer on a CPU"),
        ({"offload": "parameters"}, "offload=parameters on a CPU"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_combined_is_refused_by_name_with_the_fix(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        train(tmp_path / "run", **settings)
    assert caught.value.fix


def test_running_out_of_memory_in_such_a_backward_pass_says_what_to_set(tmp_path):
    trainer = make(tmp_path / "run", **BACKWARD)
    step = trainer.assembly.step

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("out of memory")

    step.accumulate_once = full
    with pytest.raises(ConfigError, match="out of memory in a backward pass") as caught:
        trainer.fit()
    assert "memory=pointwise" in caught.value.fix


def test_growing_segments_are_for_cuda_and_a_cpu_says_so(tmp_path):
    assert grow_segments("auto") == torch.cuda.is_available()
    train(tmp_path / "run", expandable_segments=True, max_steps=1)
    log = (tmp_path / "run/log.txt").read_text()
    assert "expandable_segments=true does nothing on cpu" in log


def test_no_gradient_is_left_between_steps(tmp_path):
    trainer = train(tmp_path / "run", max_steps=2)
    assert all(p.grad is None for p in trainer.model.parameters())


def test_where_memory_runs_out_each_saver_is_named_with_what_it_would_free(tmp_path):
    model = GPT(context_length=32, num_classes=50, num_layers=2, dim=256, heads=4)
    trainer = train(tmp_path / "run", model=model, max_steps=1)
    mib = 2**20
    trained = sum(p.nbytes for p in trainer.model.parameters())
    said = describe_savings(trainer)
    assert f"param_dtype=bf16 {trained / mib:,.0f} MiB" in said
    state, packed = trainer.assembly.optimizer_bytes, 2.04 / 8
    assert f"optimizer=adamw8bit {(1 - packed) * state / mib:,.0f} MiB" in said
    assert "optimizer_in_backward=true" in said
    assert "offload" not in said


def test_copies_of_a_model_are_told_what_dividing_it_would_free(tmp_path):
    model = GPT(context_length=32, num_classes=50, num_layers=2, dim=256, heads=4)
    with paper_ranks(2, 0):
        trainer = make(tmp_path / "run", model=model, parallel="dp2")
        weights = sum(p.nbytes for p in trainer.model.parameters())
        said = trainer.assembly and describe_savings(trainer)
    # weights, gradients, two moments
    assert f"parallel=fsdp {4 * weights / 2 / 2**20:,.0f} MiB" in said


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ("tp2", "adds up parts of gradients after the backward pass"),
        ({"dp_replicate": 2, "compression": "powersgd"}, "needs buckets of many gradients"),
        ({"dp_replicate": 2, "unused_parameters": True}, "leaves weights out in some steps"),
    ],
)
def test_several_ranks_are_told_why_they_cannot_update_in_the_backward_pass(plan, why, tmp_path):
    with paper_ranks(2, 0), pytest.raises(ConfigError, match=why) as caught:
        make(tmp_path / "run", parallel=plan, **BACKWARD).assembly  # noqa: B018
    assert "optimizer_in_backward to false" in caught.value.fix
