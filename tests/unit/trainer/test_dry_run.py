"""A step on paper, as one of many ranks."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.datasets import TokenDataset
from deepseek.errors import ConfigError
from deepseek.memory.simulation import simulate_step
from deepseek.models import GPT, Encoder, ModelEngine, VisionTransformer
from deepseek.trainer import Trainer
from deepseek.trainer.dry_run import dry_run
from deepseek.trainer.dry_run_report import describe_dry_run

SIZES = {"num_layers": 4, "dim": 32, "heads": 4}
PLANS = {
    "dp8": 8, "fsdp8": 8, "tp4": 4, "cp4": 4, "pp4": 4, "dp2-tp2": 4, "dp2-fsdp2-cp2": 8,
    "fsdp2-tp4": 8, "tp2-pp2-cp2": 8, "dp2-tp2-pp2": 8, "dp8-fsdp8-tp4-pp2": 512,
}  # fmt: skip
MAKERS = {
    "gpt": lambda dropout: GPT(16, **SIZES, num_classes=67, dropout=dropout),
    "vit": lambda dropout: VisionTransformer(8, 2, channels=1, **SIZES, dropout=dropout),
    "encoder": lambda dropout: Encoder(20, 16, **SIZES, dropout=dropout),
}


def make_data(kind):
    labels = torch.arange(128) % 5
    if kind == "encoder":
        return TensorDataset(torch.ones(128, 16, dtype=torch.int64), labels)
    if kind == "vit":
        return TensorDataset(torch.zeros(128, 1, 8, 8), labels)
    tokens = np.random.default_rng(0).integers(0, 67, 128 * 16 + 1)
    return TokenDataset(tokens, 16, [chr(40 + i) for i in range(67)])


def walk(kind, plan, size=None, rank=0, dropout=0.0, **settings):
    def build():
        with torch.device("meta"):
            model = MAKERS[kind](dropout)
        chosen = {"batch_size": 64, "max_steps": 1, "precision": "fp32", **settings}
        return Trainer(model, make_data(kind), parallel=plan, device="cpu", **chosen)

    return dry_run(build, world_size=size or PLANS[plan], rank=rank)


def left_out(run):
    return [note for note in run.notes if "left out" in note]


QUICK = {
    ("gpt", "dp8"), ("gpt", "fsdp2-tp4"), ("gpt", "dp8-fsdp8-tp4-pp2"), ("vit", "dp2-tp2"),
    ("vit", "tp2-pp2-cp2"), ("encoder", "cp4"), ("fsdp8", "pointwise"), ("pp4", "full"),
    ("resnet18", "dp8"), ("tp4", "selective"), ("gpipe", "off"),
    ("interleaved_zero_bubble", "off"), ("zbv_zero_bubble", "full"),
}  # fmt: skip


def often(*values):
    """These are tried in every run of the tests, the others in the long ones."""
    return [v if v in QUICK else pytest.param(*v, marks=pytest.mark.long) for v in values]


@pytest.mark.parametrize(("kind", "plan"), often(*((k, p) for k in MAKERS for p in PLANS)))
def test_every_axis_can_be_walked(kind, plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = PLANS[plan]
    run = walk(kind, plan, rank=size - 1, dropout=0.1, batch_size=max(64, size // 4))
    assert not left_out(run)
    assert run.peak_bytes > sum(run.held.values())
    axes = {each.axis for each in run.traffic}
    assert {name for name in ("tp", "cp", "pp") if name in plan} <= axes
    assert ("data" in axes) == any(name in plan for name in ("dp", "cp"))
    scatters = any(each.kind == "reduce_scatter" and each.axis == "data" for each in run.traffic)
    assert scatters == ("gradients: reduce-scatter" in run.lines[1])
    text = "\n".join(describe_dry_run(run))
    assert f"parallel {run.lines[1].split()[1]}" in text
    assert not any(tmp_path.iterdir())
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    "schedule",
    [
        "zbv_zero_bubble",
        *(pytest.param(s, marks=pytest.mark.long) for s in ("gpipe", "looped_bfs")),
    ],
)
def test_schedules_can_be_walked(schedule):
    plan = {"pp": 2, "schedule": schedule, "micro_batches": 8}
    run = walk("vit", plan, 2, rank=1)
    assert not left_out(run)


@pytest.mark.parametrize(
    ("plan", "memory"),
    often(
        ("fsdp8", "pointwise"),
        ("pp4", "full"),
        ("fsdp8", "selective"),
        ("tp4", "full"),
        ("tp4", "selective"),
        ("fsdp2-tp4", "pointwise"),
    ),
)
def test_a_policy_keeps_less_on_paper(plan, memory):
    kept = walk("gpt", plan, memory=memory)
    assert not left_out(kept)
    assert kept.peak["activations"] < walk("gpt", plan).peak["activations"]


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.long)])
def test_ranks_of_tp_keep_no_activation_that_is_cheap_to_make_again(precision):
    # what norms make is gathered before it is kept, but for the last one
    kept = {
        memory: walk("gpt", "tp2", 2, precision=precision, memory=memory).peak["activations"]
        for memory in ("off", "pointwise", "selective")
    }
    item, tokens = 2 if precision == "bf16" else 4, 64 * 16
    hidden = 4 * item * tokens * 4 * 32 // 2  # of 4 layers
    assert kept["off"] - kept["pointwise"] == hidden + item * tokens * 32
    assert kept["pointwise"] - kept["selective"] == hidden


@pytest.mark.parametrize(
    ("name", "plan"),
    often(*((n, p) for n in ("resnet18", "vit_tiny_patch16_224") for p in ("dp8", "fsdp8"))),
)
def test_any_model_of_timm_can_be_walked_on_the_data_axes(name, plan):
    def build():
        with torch.device("meta"):
            model = ModelEngine(f"timm/{name}")
        data = TensorDataset(torch.zeros(16, 3, 224, 224), torch.arange(16) % 5)
        return Trainer(model, data, parallel=plan, device="cpu", batch_size=16, precision="fp32")

    assert not left_out(dry_run(build, world_size=8, rank=3))


def walk_gpt(plan, size, length, dropout, **settings):
    def build():
        with torch.device("meta"):
            model = GPT(length, **{**SIZES, "dim": 128}, num_classes=1500, dropout=dropout)
        data = TokenDataset(
            np.zeros(32 * length + 1, np.int64), length, [str(n) for n in range(1500)]
        )
        chosen = {"batch_size": 16, "max_steps": 1, "precision": "bf16", **settings}
        return Trainer(model, data, parallel=plan, device="cpu", **chosen)

    return dry_run(build, world_size=size, rank=size - 1)


@pytest.mark.parametrize(
    ("plan", "size", "length", "dropout"),
    [
        ("none", 1, 128, 0.1),  # scores are kept
        ("none", 1, 1024, 0.1),  # in fp32: no kernel of a CPU has dropout
        ("tp2-pp2", 4, 1024, 0.0),  # a buffer for each micro-batch that a stage receives
        pytest.param("tp2-pp2", 4, 128, 0.1, marks=pytest.mark.long),
        pytest.param("none", 1, 1024, 0.0, marks=pytest.mark.long),
        pytest.param("fsdp2", 2, 128, 0.1, marks=pytest.mark.long),
        pytest.param("cp2", 2, 256, 0.1, marks=pytest.mark.long),
        pytest.param("pp4", 4, 1024, 0.1, marks=pytest.mark.long),
    ],
)
def test_the_planner_has_a_term_for_what_is_walked(plan, size, length, dropout):
    run = walk_gpt(plan, size, length, dropout)
    assert sum(run.forecast.memory.values()) == pytest.approx(run.peak_bytes, rel=0.1)
    assert not any("the planner's sum" in line for line in describe_dry_run(run))


@pytest.mark.parametrize(
    ("schedule", "memory"),
    often(
        *(
            (schedule, memory)
            for schedule in ("gpipe", "interleaved_zero_bubble", "zbv_zero_bubble")
            for memory in ("off", "selective", "full")
        )
    ),
)
def test_the_planner_knows_what_each_schedule_keeps(schedule, memory):
    plan = {"pp": 2, "schedule": schedule, "micro_batches": 4}
    run = walk_gpt(plan, 2, 1024, 0.0, memory=memory)
    assert sum(run.forecast.memory.values()) == pytest.approx(run.peak_bytes, rel=0.07)


def test_a_sum_that_is_off_is_said_to_be_and_by_which_category():
    run = walk_gpt("none", 1, 128, 0.0)
    less = {**run.forecast.memory, "activations": run.peak["activations"] / 2}
    lines = describe_dry_run(replace(run, forecast=replace(run.forecast, memory=less)))
    [said] = [line for line in lines if "the planner's sum" in line]
    assert re.search(r"sum is -\d+\.\d% off, most of it by activations \(-[\d.]+ MiB\)", said)


def test_one_dry_run_leaves_nothing_to_the_next():
    first = walk("vit", "fsdp2-tp2", 4)
    again = [walk("vit", "tp2-pp2", 4, rank=3), walk("vit", "fsdp2-tp2", 4)]
    assert not any(left_out(run) for run in again)
    assert again[1].traffic == first.traffic
    assert again[1].peak == first.peak


def test_shares_of_all_ranks_are_the_whole_model():
    whole = walk("gpt", "none", 1)
    for plan in ("fsdp2", "tp2"):
        part = walk("gpt", plan, 2).held["weights"]
        assert whole.held["weights"] <= 2 * part < 1.2 * whole.held["weights"]
    stages = [walk("gpt", "pp2", 2, rank=rank).held["weights"] for rank in range(2)]
    tied = 128 * 32 * 4  # an embedding, padded, which the last rank has as its head
    assert sum(stages) == whole.held["weights"] + tied
    assert walk("gpt", "dp2", 2).held["weights"] == whole.held["weights"]


def test_gradients_are_sent_once_and_weights_gathered_for_each_micro_batch():
    def sent(plan, steps, kind):
        run = walk("gpt", plan, 2, grad_accum_steps=steps)
        return sum(each.num_bytes for each in run.traffic if each.kind == kind)

    assert sent("dp2", 1, "all_reduce") == sent("dp2", 8, "all_reduce") > 0
    assert sent("fsdp2", 8, "reduce_scatter") == 8 * sent("fsdp2", 1, "reduce_scatter")


def test_the_peak_of_one_process_is_that_of_the_simulated_step():
    run = walk("gpt", "none", 1)
    with torch.device("meta"):
        model = MAKERS["gpt"](0.0)

    def loss_of(logits):
        targets = torch.zeros(64, 16, dtype=torch.int64)
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    alone = simulate_step(model, lambda: torch.zeros(64, 16, dtype=torch.int64), loss_of)
    assert run.peak_bytes - sum(run.held.values()) == pytest.approx(alone.peak_bytes, rel=0.01)


def test_the_planner_agrees_with_what_is_walked():
    # long enough for attention without a matrix of scores
    def build():
        with torch.device("meta"):
            model = GPT(1024, num_layers=4, dim=256, heads=4, num_classes=8000)
        tokens = np.zeros(17 * 1024, dtype=np.int64)
        data = TokenDataset(tokens, 1024, [str(i) for i in range(8000)])
        settings = {"batch_size": 16, "precision": "bf16", "grad_accum_steps": 2}
        return Trainer(model, data, parallel="fsdp4", device="cpu", max_steps=1, **settings)

    run = dry_run(build, world_size=4)
    assert run.forecast is not None
    for name in ("weights", "optimizer", "activations", "logits"):
        assert run.forecast.memory[name] == pytest.approx(run.peak[name], rel=0.05), name
    sent = sum(each.sent_bytes for each in run.traffic)
    assert run.forecast.sent["data"] == pytest.approx(sent, rel=0.25)
    assert "planner" in "\n".join(describe_dry_run(run))


@pytest.mark.parametrize(
    ("plan", "settings"),
    [
        ("tp2", {}),
        ("cp2", {}),
        ("tp2", {"memory": "pointwise"}),
        pytest.param("dp2-tp2", {}, marks=pytest.mark.long),
        pytest.param("fsdp2-cp2", {"memory": "pointwise"}, marks=pytest.mark.long),
        pytest.param("cp4", {"memory": "pointwise"}, marks=pytest.mark.long),
    ],
)
def test_the_planner_counts_what_ranks_keep_of_what_they_gather(plan, settings):
    def build():
        with torch.device("meta"):
            model = GPT(4096, num_layers=4, dim=256, heads=4, num_classes=8192)
        data = TokenDataset(np.zeros(5 * 4096, np.int64), 4096, [str(i) for i in range(8192)])
        chosen = {"batch_size": 4, "precision": "bf16", "max_steps": 1, **settings}
        return Trainer(model, data, parallel=plan, device="cpu", **chosen)

    run = dry_run(build, world_size=math.prod(int(n) for n in re.findall(r"\d", plan)))
    assert run.forecast is not None
    assert run.forecast.memory["logits"] == pytest.approx(run.peak["logits"], rel=0.01)
    assert sum(run.forecast.memory.values()) == pytest.approx(run.peak_bytes, rel=0.1)


def test_the_planner_counts_of_a_model_with_adapters_what_they_train():
    def build():
        with torch.device("meta"):
            model = GPT(1024, num_layers=4, dim=256, heads=4, num_classes=8000)
        data = TokenDataset(np.zeros(9 * 1024, np.int64), 1024, [str(i) for i in range(8000)])
        settings = {"batch_size": 8, "precision": "bf16", "lora": {"rank": 8}}
        return Trainer(model, data, parallel="dp2", device="cpu", max_steps=1, **settings)

    run = dry_run(build, world_size=2)
    assert run.forecast is not None
    trained = run.held["gradients"]
    assert run.peak["gradients"] == trained < 0.05 * run.held["weights"]
    assert run.peak["optimizer"] == pytest.approx(2 * trained, rel=0.01)
    for name in ("gradients", "optimizer"):
        assert run.forecast.memory[name] == pytest.approx(run.peak[name], rel=0.01), name
    # the weights of adapters themselves are left out
    assert run.forecast.memory["weights"] == pytest.approx(run.peak["weights"], rel=0.03)
    assert sum(run.forecast.memory.values()) == pytest.approx(run.peak_bytes, rel=0.05)
    sent = sum(each.sent_bytes for each in run.traffic)
    assert run.forecast.sent["data"] == pytest.approx(sent, rel=0.01)


@pytest.mark.parametrize("memory", ["off", "pointwise"])
def test_what_waits_on_the_host_is_walked(memory):
    sizes = {"num_layers": 4, "dim": 64, "heads": 4, "num_classes": 67}
    tokens = np.zeros(65 * 64, dtype=np.int64)

    def build():
        with torch.device("meta"):
            model = GPT(64, **sizes)
        data = TokenDataset(tokens, 64, [str(i) for i in range(67)])
        return Trainer(
            model, data, batch_size=16, device="cpu", max_steps=1, memory=memory, offload=offload
        )

    offload = "none"
    plain = dry_run(build)
    offload = "activations"
    moved = dry_run(build)
    assert moved.peak["activations"] < 0.7 * plain.peak["activations"]
    assert plain.host_bytes == 0
    assert moved.host_bytes > 0.7 * (plain.peak["activations"] - moved.peak["activations"])
    assert "on the host" in "\n".join(describe_dry_run(moved))


def test_an_impossible_plan_is_refused_with_those_that_work():
    with pytest.raises(ConfigError, match=r"tp=3 does not divide heads=4") as caught:
        walk("vit", "tp3-dp2", 6)
    assert "which would work with 6 processes" in str(caught.value)
    assert not dist.is_initialized()


@pytest.mark.parametrize(("size", "rank"), [(8, 8), (8, -1), (0, 0)])
def test_a_rank_that_there_is_not_is_refused(size, rank):
    with pytest.raises(ConfigError, match=f"rank={rank} of world_size={size}"):
        dry_run(lambda: pytest.fail("built"), world_size=size, rank=rank)


def test_a_real_rank_cannot_be_on_paper(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one of several that are real"):
        dry_run(lambda: pytest.fail("built"), world_size=2)


def test_what_cannot_be_walked_is_said():
    class Looking(nn.Linear):
        def forward(self, x):
            x = x.flatten(1)
            return super().forward(x) if float(x.sum()) > 0 else super().forward(-x)

    def build():
        return Trainer(Looking(64, 5), make_data("vit"), parallel="dp2", device="cpu")

    run = dry_run(build, world_size=2)
    assert any("forward and backward are left out" in note for note in run.notes)
    assert run.peak["gradients"] == run.peak["weights"] == 4 * (64 * 5 + 5)


def test_what_is_walked_otherwise_is_said():
    settings = {"precision": "fp16", "graph": "static", "memory": 0.5}
    notes = "\n".join(walk("gpt", "fsdp8", **settings).notes)
    for name in settings:
        assert f"{name}={settings[name]}" in notes
    run = walk("gpt", "none", 1, optimizer_in_backward=True, clip_grad_norm=None)
    assert any("optimizer_in_backward" in note for note in run.notes)


def test_rows_are_as_long_as_the_data_make_them():
    def build():
        with torch.device("meta"):
            model = GPT(64, **SIZES, num_classes=67)
        return Trainer(
            model, make_data("gpt"), batch_size=64, max_steps=1, precision="fp32", device="cpu"
        )

    run = dry_run(build)
    assert run.forecast is not None
    assert run.forecast.memory["weights"] == pytest.approx(run.peak["weights"], rel=0.05)
    assert sum(run.forecast.memory.values()) == pytest.approx(run.peak_bytes, rel=0.1)
