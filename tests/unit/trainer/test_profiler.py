import gzip
import json

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.deploy.report import write_report
from deepseek.trainer import Trainer
from deepseek.trainer.profiler import PHASES

QUIET = {"loggers": ("jsonl",), "num_workers": 0, "precision": "fp32"}


def make_trainer(run, **settings):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 3))
    data = TensorDataset(torch.randn(320, 64), torch.randint(0, 3, (320,)))
    return Trainer(net, data, batch_size=16, epochs=1, run_dir=run, **QUIET, **settings)


def test_a_profile_has_every_phase_a_trace_and_the_memory(tmp_path):
    run = tmp_path / "run"
    make_trainer(run, profile=True, grad_accum_steps=2).fit()
    phases = json.loads((run / "profile/phases.json").read_text())
    assert phases["num_steps"] == 20 - 3 - 3
    seconds = phases["seconds_per_step"]
    assert tuple(seconds) == PHASES
    assert all(value > 0 for value in seconds.values())
    with gzip.open(run / "profile/trace.json.gz", "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("forward") == 3 * 2
    memory = json.loads((run / "profile/memory.json").read_text())
    levels = memory["bytes"]
    assert all(len(level) == len(memory["ms"]) > 10 for level in levels.values())
    weights = 4 * (64 * 256 + 256 + 256 * 3 + 3)
    assert set(levels["weights"]) == {weights}
    assert min(levels["optimizer"]) >= 2 * weights  # AdamW, and its counts of steps
    # of all weights at most, and of none after the update
    assert weights <= max(levels["gradients"]) < 1.1 * weights
    assert min(levels["gradients"]) == 0
    # the input is the batch's; kept are the hidden layer (16 / 2 samples of 256) and its ReLU
    assert 8 * 256 * 4 <= max(levels["activations"]) <= 3 * 8 * 256 * 4
    assert "profile  a step takes" in (run / "log.txt").read_text()
    page = write_report(run).read_text()
    assert "Where a step" in page
    assert "Memory of tensors over the traced steps, by category" in page


def test_profiling_changes_no_weight(tmp_path):
    plain, profiled = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b", profile=True)
    plain.fit()
    profiled.fit()
    for ours, theirs in zip(plain.model.parameters(), profiled.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    page = (tmp_path / "a/report.html").read_text()
    assert "Where a step" not in page
    assert "trainer.profile=true" in page  # how to get it


def test_a_short_run_says_that_nothing_was_measured(tmp_path):
    make_trainer(tmp_path / "run", profile=True, max_steps=4).fit()
    assert "no more than 6 steps" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.parametrize(
    "memory",
    [
        '{"ms": [1, "x"], "bytes": 5}',
        '{"ms": [1, 2], "bytes": {"<b>": [1, 2], "a": [1], "b": 3}}',
        '{"ms": [1, 2], "bytes": {"a": [1e999, NaN]}}',
        '{"ms": [], "bytes": {"a": []}}',
    ],
)
@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"seconds_per_step": {"a": "<b>", "b": 1e999}}',
        '{"seconds_per_step": {"<b>": 1}}',
        '{"seconds_per_step": {"a": 1}}',
        "x",
    ],
)
def test_a_hostile_profile_does_not_break_the_report(tmp_path, content, memory):
    run = tmp_path / "run"
    make_trainer(run, max_steps=4).fit()
    (run / "profile").mkdir()
    (run / "profile/phases.json").write_text(content)
    (run / "profile/memory.json").write_text(memory)
    assert "<b>" not in write_report(run).read_text()
