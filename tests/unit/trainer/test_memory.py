"""`memory=...` in a run: the same weights, and a budget that is kept to."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.config import TrainerConfig
from deepseek.datasets import DataLoader, TokenDataset
from deepseek.errors import ConfigError
from deepseek.memory.host_link import HostLink
from deepseek.models import GPT
from deepseek.trainer import Trainer
from deepseek.trainer.footprint import (
    HOLES_OF_VARIED,
    LITTLE_BYTES,
    _simulate,
    check_footprint,
    describe_savings,
)
from deepseek.trainer.host_pace import trial_batch
from deepseek.trainer.memory_budget import remakes_norms
from deepseek.trainer.step import TrainStep

SIZES = {"num_layers": 2, "dim": 64, "heads": 4}


def tokens(size=50):
    return TokenDataset(
        np.arange(24 * 64 + 1) * 7 % 50, 64, [str(number) for number in range(size)]
    )


def train(folder, memory, model=None, data=None, dropout=0.1, **settings):
    torch.manual_seed(0)
    if model is None:
        model = GPT(context_length=64, num_classes=50, dropout=dropout, **SIZES)
    chosen = {"batch_size": 8, "max_steps": 4, "loggers": ["jsonl"], "device": "cpu"} | settings
    trainer = Trainer(
        model,
        data or tokens(),
        memory=memory,
        run_dir=folder / str(memory),
        num_workers=0,
        **chosen,
    )
    trainer.fit()
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("memory", ["pointwise", "selective", "full", 0.8, 0.6, 0.3, "8GiB"])
def test_a_policy_changes_no_bit_of_what_is_learnt(memory, precision, tmp_path):
    expected = weights(train(tmp_path, "off", precision=precision, grad_accum_steps=2))
    found = train(tmp_path, memory, precision=precision, grad_accum_steps=2)
    assert torch.equal(weights(found), expected)


@pytest.mark.parametrize(
    ("memory", "policy"), [(1.0, "off"), (0.9, "pointwise"), (0.2, "pointwise"), ("8GiB", "off")]
)
def test_a_budget_is_kept_to_by_the_cheapest_policy(memory, policy, tmp_path):
    trainer = train(tmp_path, memory, precision="fp32")
    assert trainer.assembly.step.graph.memory.name == policy
    lines = (trainer.folder.path / "events.jsonl").read_text().splitlines()
    said = [event for event in map(json.loads, lines) if event["kind"] == "memory"]
    assert [event["policy"] for event in said] == [policy]


def test_a_budget_between_two_policies_gives_up_some_products(tmp_path):
    policy = train(tmp_path, 0.6, precision="fp32").assembly.step.graph.memory
    assert policy.name == "selective"
    assert policy.remade_places
    assert not policy.recomputed


@pytest.mark.parametrize(("memory", "least"), [(0.4, 1), (0.2, 2)])
def test_a_budget_below_what_products_free_recomputes_blocks(memory, least, tmp_path):
    trainer = train(tmp_path, memory, precision="fp32")
    assert least <= len(trainer.assembly.step.graph.memory.recomputed) <= 2
    said = said_of_budget(trainer)
    assert re.search(r"[12] of 2 blocks recomputed", said)
    sizes = {name: float(size) for name, size in re.findall(r"(\w+) ([\d.]+)", said)}
    assert sizes["kept"] <= memory * sizes["activations"] + 1


def test_a_share_that_cannot_be_kept_to_is_said(tmp_path):
    trainer = train(tmp_path, 0.001, precision="fp32")
    lines = (trainer.folder.path / "events.jsonl").read_text().splitlines()
    [said] = [each for each in map(json.loads, lines) if each["kind"] == "warning"]
    pattern = r"memory=0.001 cannot be kept to: (\d\.\d)% of the activations, \d\.\d MiB"
    found = re.match(pattern, said["message"])
    assert 0.1 < float(found[1]) < 20
    assert "grad_accum_steps" in said["message"]


def said_of_budget(trainer):
    lines = (trainer.folder.path / "events.jsonl").read_text().splitlines()
    [said] = [event for event in map(json.loads, lines) if event["kind"] == "memory"]
    return said["message"]


def offloading(folder, memory, **settings):
    settings = {"precision": "fp32", "offload": "activations"} | settings
    return train(folder, memory, batch_size=24, grad_accum_steps=2, max_steps=2, **settings)


@pytest.mark.parametrize("memory", ["off", "pointwise", "selective", 0.4])
def test_what_waits_on_the_host_changes_no_bit_of_what_is_learnt(memory, tmp_path):
    expected = weights(offloading(tmp_path / "none", "off", offload="none"))
    found = offloading(tmp_path, memory)
    assert torch.equal(weights(found), expected)
    copies = found.assembly.step.graph.memory.copies
    assert copies.num_copies > 0
    assert copies.num_fetches >= copies.num_copies - 1


def test_a_budget_takes_to_the_host_before_it_does_a_product_again(tmp_path):
    found = offloading(tmp_path, 0.5)
    policy = found.assembly.step.graph.memory
    assert (policy.name, policy.remade_places) == ("pointwise", frozenset())
    assert policy.copied_places
    said = said_of_budget(found)
    sizes = {name: float(size) for name, size in re.findall(r"(\w+) ([\d.]+)", said)}
    pattern = r"memory=0.5: pointwise; activations \d+ MiB: kept \d+, recomputed \d+, offloaded \d+"
    assert re.fullmatch(pattern, said)
    total = sizes["kept"] + sizes["recomputed"] + sizes["offloaded"]
    assert total == pytest.approx(sizes["activations"], abs=1.5)
    assert sizes["kept"] <= 0.5 * sizes["activations"] + 1
    assert sizes["offloaded"] >= 1


@pytest.mark.parametrize(("speed", "is_used"), [(1e12, True), (1.0, False)])
def test_a_link_that_hides_nothing_is_left_alone(speed, is_used, tmp_path, monkeypatch):
    link = HostLink(speed, speed)
    monkeypatch.setattr("deepseek.trainer.host_pace.measure_link", lambda device: link)
    found = offloading(tmp_path, 0.6, offload="none")
    policy = found.assembly.step.graph.memory
    assert bool(policy.copied_places) == is_used
    computes_again = policy.name == "selective" or bool(policy.recomputed)
    assert computes_again == (not is_used)
    assert (" ms to a micro-batch of " in said_of_budget(found)) == (not is_used)
    assert torch.equal(weights(found), weights(offloading(tmp_path / "off", "off", offload="none")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"memory": "full"}, "memory=full"), ({"memory": "off", "graph": "static"}, "graph=static")],
)
def test_what_keeps_nothing_of_its_own_cannot_be_copied(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=f"offload=activations with {message}") as caught:
        offloading(tmp_path, **settings)
    assert "offload to none" in caught.value.fix


def test_an_accelerator_is_predicted_to_keep_less_and_the_host_more(tmp_path):
    trainer = train(tmp_path, "off", max_steps=1)
    trainer.device = torch.device("cuda")
    plain, moved = _simulate(trainer, on="cpu"), _simulate(trainer, copies_all=True)
    assert plain.host_bytes == 0
    assert moved.peak_bytes < plain.peak_bytes
    freed = plain.activation_bytes - moved.activation_bytes
    assert 0.8 * moved.host_bytes < freed <= moved.host_bytes
    assert f"offload=activations {(plain.peak_bytes - moved.peak_bytes) / 2**20:,.0f} MiB" in (
        describe_savings(trainer)
    )


def test_a_budget_that_cannot_be_kept_to_says_what_is_needed(tmp_path):
    class Flat(nn.Module):  # no blocks
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 64, 3)

        def forward(self, x):
            return self.conv(x).exp().mean((2, 3))

    data = TensorDataset(torch.randn(16, 3, 64, 64), torch.arange(16) % 10)
    with pytest.raises(
        ConfigError, match=r"memory=1MiB cannot be kept to: the least is [\d,]+ MiB"
    ):
        train(tmp_path, "1MiB", Flat(), data)


def test_full_without_blocks_is_refused(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    data = TensorDataset(torch.randn(16, 12), torch.arange(16) % 10)
    with pytest.raises(ConfigError, match="no list of blocks"):
        train(tmp_path, "full", model, data)


def test_a_model_that_recomputes_by_itself_is_refused(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
    model.set_grad_checkpointing(True)
    data = TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 10)
    with pytest.raises(ConfigError, match="own gradient checkpointing"):
        train(tmp_path, "pointwise", model, data)


@pytest.mark.parametrize("memory", ["most", "24", "-1GiB", 0, 1.5])
def test_nonsense_is_refused(memory, tmp_path):
    with pytest.raises(ConfigError, match="memory"):
        train(tmp_path, memory)


@pytest.mark.long
@pytest.mark.parametrize("memory", ["off", "pointwise", "selective", "full", 0.5, 0.2, "8GiB"])
def test_a_static_graph_learns_the_same_under_a_policy(memory, tmp_path):
    runs = [
        train(tmp_path / graph, memory, graph=graph, precision="fp32", dropout=0.0)
        for graph in ("dynamic", "static")
    ]
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]), rtol=0, atol=2e-4)


def test_passes_of_a_trial_are_not_counted_as_those_of_the_run(tmp_path):
    model = GPT(context_length=64, num_classes=50, **SIZES)
    trainer = Trainer(model, tokens(), batch_size=8, device="cpu", run_dir=tmp_path, num_workers=0)
    graph = trainer.assembly.step.graph
    with trial_batch(trainer, 2) as batch:
        assert len(batch["inputs"]) == 2
        graph.num_compiled, graph.num_eager = 1, 2
    assert (graph.num_compiled, graph.num_eager) == (0, 0)


@pytest.mark.long
def test_a_static_graph_gets_the_share_of_a_budget_and_is_predicted(tmp_path, capsys):
    model = GPT(context_length=64, num_classes=50, num_layers=2, dim=64, heads=4)
    settings = {"loggers": ["console", "jsonl"], "max_steps": 3}
    trainer = train(tmp_path, 0.6, model, graph="static", **settings)
    policy = trainer.assembly.step.graph.memory
    assert 0.5 < policy.share < 1.0  # of what `pointwise` keeps
    assert trainer.assembly.step.graph.num_compiled == 3
    said = said_of_budget(trainer)
    assert f"a compiled graph may keep {policy.share:.0%} of what pointwise keeps" in said
    out = capsys.readouterr().out
    [predicted] = [line for line in out.splitlines() if line.startswith("memory predicted")]
    assert predicted.endswith("without what compiling saves")
    events = map(json.loads, (trainer.folder.path / "events.jsonl").read_text().splitlines())
    [kept] = [event for event in events if event["kind"] == "memory_kept"]
    assert 0 < kept["kept_bytes"] <= 1.03 * kept["allowed_bytes"]
    assert "compiled, a micro-batch keeps" in out


def test_bytes_that_are_too_few_for_a_static_graph_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="memory=1MiB cannot be kept to: the least is"):
        train(tmp_path, "1MiB", graph="static")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("chunks", [2, 5, 64])
def test_a_loss_in_chunks_learns_the_same(chunks, precision, tmp_path):
    settings = {"precision": precision, "grad_accum_steps": 2, "lr": 1e-3}
    expected = weights(train(tmp_path / "whole", "off", **settings))
    found = weights(train(tmp_path / "cut", "selective", loss_chunks=chunks, **settings))
    tolerance = 2e-5 if precision == "fp32" else 5e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_chunks_are_refused_where_there_are_none(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    data = TensorDataset(torch.randn(16, 12), torch.arange(16) % 10)
    with pytest.raises(ConfigError, match=r"loss_chunks=4 leaves the head of .* it has no head"):
        train(tmp_path, "off", model, data, loss_chunks=4)


@pytest.mark.parametrize("chunks", [4, pytest.param(3, marks=pytest.mark.long)])
def test_a_loss_in_chunks_is_captured_too(chunks, tmp_path):
    settings = {"precision": "fp32", "dropout": 0.0, "grad_accum_steps": 2}
    whole = train(tmp_path / "whole", "off", **settings)
    cut = train(tmp_path / "cut", "off", graph="static", loss_chunks=chunks, **settings)
    torch.testing.assert_close(weights(cut), weights(whole), rtol=0, atol=2e-4)
    # the model, a part's loss, and that of the last part where it is smaller
    assert cut.assembly.step.graph.num_graphs == (2 if chunks == 4 else 3)
    assert cut.assembly.step.graph.num_compiled == 8


def test_the_peak_is_predicted_by_category_and_compared(tmp_path, capsys):
    trainer = train(tmp_path, "pointwise", loggers=["console", "jsonl"])
    out = capsys.readouterr().out
    [predicted] = [line for line in out.splitlines() if line.startswith("memory predicted")]
    for category in ("process", "weights", "optimizer", "gradients", "activations", "holes"):
        assert f"{category} " in predicted
    summary = json.loads((trainer.folder.path / "summary.json").read_text())
    assert summary["predicted_memory_bytes"] == trainer.footprint.peak
    logits = 8 * 64 * 50 * 4  # their logarithms of probabilities are kept
    assert logits <= trainer.footprint.logits < trainer.footprint.activations
    shown = replace(trainer.footprint, logits=3 << 20, activations=8 << 20).describe()
    assert "activations 5, logits 3, holes" in shown


def test_a_prediction_is_compared_with_what_was_used(tmp_path, capsys, monkeypatch):
    used = iter([0, *[10**12] * 100])
    monkeypatch.setattr("deepseek.trainer.footprint.peak_memory_bytes", lambda device: next(used))
    trainer = train(tmp_path, "off", loggers=["console", "jsonl"])
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("memory measured 953,674 MiB")]
    assert "off what was predicted, by activations" in out
    lines = (trainer.folder.path / "events.jsonl").read_text().splitlines()
    [said] = [each for each in map(json.loads, lines) if each["kind"] == "memory_peak"]
    assert said["predicted_bytes"] < said["measured_bytes"]


@pytest.mark.parametrize(
    ("more", "warns"), [(1.09, False), (1.11, True), (0.91, False), (0.89, True)]
)
def test_a_run_warns_from_a_tenth_on(more, warns, tmp_path, monkeypatch):
    gib = 1 << 30
    monkeypatch.setattr("deepseek.trainer.footprint.resident_bytes", lambda device: 2 * gib)
    trainer = train(tmp_path, "off", max_steps=1)
    trainer.footprint = replace(trainer.footprint, process=2 * gib)
    used = int(more * trainer.footprint.peak)
    monkeypatch.setattr("deepseek.trainer.footprint.peak_memory_bytes", lambda device: used)
    said = []
    monkeypatch.setattr(trainer, "warn", said.append)
    check_footprint(trainer)
    assert bool(said) == warns
    assert all("activations" in text for text in said)


def test_a_budget_of_bytes_that_was_exceeded_is_said_to_be(tmp_path, monkeypatch):
    trainer, said = train(tmp_path, "8GiB", max_steps=1), []
    monkeypatch.setattr(trainer, "warn", said.append)
    for used in (8 << 30, (8 << 30) + (1 << 20)):
        monkeypatch.setattr(
            "deepseek.trainer.footprint.peak_memory_bytes", lambda device, used=used: used
        )
        check_footprint(trainer)
    [over] = [text for text in said if "exceeded" in text]
    assert "memory=8GiB was exceeded: 8,193 MiB were used, of 8,192" in over


def test_batches_that_differ_in_length_are_compared_later(tmp_path, monkeypatch):
    monkeypatch.setattr(DataLoader, "varies_in_length", True)
    monkeypatch.setattr("deepseek.trainer.footprint.peak_memory_bytes", lambda device: 0)
    trainer = train(tmp_path, "off", max_steps=3)
    assert trainer.checks_memory_at == 3  # the last
    assert trainer.footprint.holes == round(HOLES_OF_VARIED * trainer.footprint.step)
    monkeypatch.setattr(trainer, "warn", lambda text: pytest.fail(text))
    monkeypatch.setattr("deepseek.trainer.footprint.resident_bytes", lambda device: 2 << 30)
    monkeypatch.setattr("deepseek.trainer.footprint.peak_memory_bytes", lambda device: 1 << 30)
    check_footprint(trainer)  # the longest may be to come


def test_little_memory_is_never_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr("deepseek.trainer.footprint.resident_bytes", lambda device: 64 << 20)
    trainer = train(tmp_path, "off", max_steps=1)
    used = trainer.footprint.peak + LITTLE_BYTES - (1 << 20)
    assert used > 1.5 * trainer.footprint.peak
    monkeypatch.setattr("deepseek.trainer.footprint.peak_memory_bytes", lambda device: used)
    monkeypatch.setattr(trainer, "warn", lambda text: pytest.fail(text))
    check_footprint(trainer)


def test_chunks_of_the_loss_are_predicted_to_need_less(tmp_path):
    whole, cut = (
        train(
            tmp_path / str(chunks), "off", GPT(context_length=64, num_classes=5000, **SIZES),
            tokens(5000), max_steps=1, loss_chunks=chunks,
        ).footprint
        for chunks in (1, 8)
    )  # fmt: skip
    # logits, their logarithms of probabilities and their gradients are there for an eighth only
    assert cut.logits == 0 < whole.logits
    assert cut.step < whole.step


def test_a_process_that_has_had_more_before_is_not_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("deepseek.trainer.footprint.peak_memory_bytes", lambda device: 10**12)
    train(tmp_path, "off", loggers=["console"])
    assert "memory measured" not in capsys.readouterr().out


def test_what_would_save_memory_is_told_where_it_runs_out(tmp_path, capsys, monkeypatch):
    accumulate, has_failed = TrainStep.accumulate_once, []

    def fail_once(self, *args, **kwargs):
        if not has_failed:
            has_failed.append(True)
            raise torch.OutOfMemoryError("out of memory")
        return accumulate(self, *args, **kwargs)

    monkeypatch.setattr(TrainStep, "accumulate_once", fail_once)
    train(tmp_path, "off", loggers=["console"])
    lines = capsys.readouterr().out.splitlines()
    [alive] = [line for line in lines if line.startswith("alive at the peak")]
    assert "weights" in alive
    assert "activations" in alive
    [said] = [line for line in lines if "a micro-batch needs" in line]
    sizes = [float(word) for word in re.findall(r"([\d.]+) MiB", said)]
    assert [name in said for name in ("pointwise", "selective", "full")] == [True] * 3
    assert sizes == sorted(sizes, reverse=True)


def test_what_was_alive_is_that_of_the_micro_batch_that_failed(tmp_path, capsys, monkeypatch):
    accumulate, left = TrainStep.accumulate_once, [2]

    def fail_twice(self, *args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("out of memory")
        return accumulate(self, *args, **kwargs)

    monkeypatch.setattr(TrainStep, "accumulate_once", fail_twice)
    trainer = train(tmp_path, "off", loggers=["console"])
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("alive at the peak")]
    kept = [int(re.search(r"activations (\d+)", line)[1]) for line in lines]
    assert kept[0] >= 1.5 * kept[1] > trainer.footprint.activations / 2**20
    assert "memory measured" not in out


def test_bytes_that_are_too_few_are_refused_with_what_is_needed(tmp_path):
    with pytest.raises(
        ConfigError, match=r"memory=1MiB cannot be kept to: the least is [\d,]+ MiB"
    ):
        train(tmp_path, "1MiB")


def test_a_budget_is_resolved_where_an_epoch_has_just_ended(tmp_path):
    train(tmp_path, "off", max_steps=3)  # an epoch of 24 samples
    model = GPT(context_length=64, num_classes=50, dropout=0.1, **SIZES)
    trainer = Trainer(
        model, tokens(), memory=0.6, run_dir=tmp_path / "off", resume=True, batch_size=8,
        max_steps=6, loggers=["jsonl"], device="cpu", num_workers=0,
    )  # fmt: skip
    trainer.fit()
    assert trainer.step == 6


@pytest.mark.parametrize(
    ("given", "device", "remakes"),
    [("auto", "cpu", True), ("auto", "cuda", False), (True, "cuda", True), (False, "cpu", False)],
)
def test_layer_norms_are_left_alone_on_a_gpu(given, device, remakes):
    config = TrainerConfig(memory="pointwise", remake_norms=given)
    assert remakes_norms(config, torch.device(device)) is remakes


@pytest.mark.parametrize("memory", ["off", "selective", 0.5])
def test_a_word_on_norms_that_says_nothing_is_refused(memory):
    with pytest.raises(ValueError, match=f"remake_norms=false with memory={memory} and graph="):
        TrainerConfig(memory=memory, remake_norms=False)


def test_norms_that_are_kept_change_no_bit_and_are_predicted(tmp_path):
    remade, kept = (
        train(tmp_path / str(remake), "pointwise", remake_norms=remake) for remake in (True, False)
    )
    assert torch.equal(weights(kept), weights(remade))
    assert kept.footprint.activations > remade.footprint.activations
