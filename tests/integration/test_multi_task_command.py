"""`deepseek train`, `evaluate`, `predict`, `explain` and `calibrate` on several tasks."""

import csv
import json
from pathlib import Path

import pytest
import torch

from deepseek.cli.main import run
from deepseek.models import ModelEngine

CONFIG = """\
name: joint
data:
  format: multi
  alpha: 0.5
  val: 0.25
  shared: {format: text, tokenizer: wordpiece, vocab_size: 100, sequence_length: 24}
  tasks:
    tone: {task: sequence_classification, train: tone.csv}
    stars: {task: sequence_regression, train: stars.csv, pair_column: of, label_column: stars}
model:
  architecture: encoder
  args: {vocab_size: 100, context_length: 24, num_layers: 1, dim: 16, heads: 2}
trainer: {epochs: 8, batch_size: 8, lr: 1e-2, loggers: [jsonl], weighting: {name: cagrad, c: 0.2}}
"""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))
    rows = [f"a {'good' if n % 2 else 'bad'} film,{'pos' if n % 2 else 'neg'}" for n in range(64)]
    Path("tone.csv").write_text("\n".join(["text,label", *rows]))
    rows = [f"a {'good' if n % 2 else 'bad'} film,plot,{n % 2 - 0.5}" for n in range(32)]
    Path("stars.csv").write_text("\n".join(["text,of,stars", *rows]))
    Path("a.yaml").write_text(CONFIG)


def test_two_tasks_from_a_file_to_predictions(capsys):
    assert run(["train", "a.yaml"]) == 0
    model = "runs/joint-1/model.bin"
    lines = Path("runs/joint-1/metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if '"epoch"' in line][-1]
    assert {"loss_tone", "weight_stars", "val_tone_accuracy", "val_stars_r2"} <= last.keys()
    capsys.readouterr()
    assert run(["evaluate", model, "--data", "tone.csv", "task=tone", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["tone_accuracy"] == 1.0
    assert not any(name.startswith("stars") for name in metrics)
    assert run(["evaluate", model, "--data", "stars.csv"]) == 2
    assert "say which: task=tone" in capsys.readouterr().err
    given = ["--parameters", "50%", "--data", "tone.csv", "--epochs", "1", "task=tone"]
    assert run(["prune", model, "small.bin", *given]) == 2
    assert "give --val" in capsys.readouterr().err
    assert run(["predict", model, "--text", "a good film", "--text", "a bad film", "--json"]) == 0
    good, bad = (row["tasks"] for row in json.loads(capsys.readouterr().out))
    assert (good["tone"]["top"][0]["label"], bad["tone"]["top"][0]["label"]) == ("pos", "neg")
    assert good["stars"]["value"] > bad["stars"]["value"]
    assert run(["predict", model, "--text", "a good film"]) == 0
    assert "tone: pos" in capsys.readouterr().out
    assert run(["predict", model, "tone.csv", "--output", "out.csv"]) == 0
    with open("out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 64
    assert rows[1]["tone_label"] == "pos"
    assert float(rows[1]["stars_value"]) > 0


def test_one_of_two_tasks_is_explained_and_calibrated(capsys):
    assert run(["train", "a.yaml", "trainer.epochs=1"]) == 0
    model, tone = "runs/joint-1/model.bin", ["--data", "tone.csv", "task=tone"]
    capsys.readouterr()
    assert run(["explain", model, *tone, "--steps", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"accuracy", "macro_f1"} <= found["metrics"].keys()
    page = Path(found["page"]).read_text()
    assert "integrated gradients" in page
    assert all(name in page for name in ("pos", "neg", "Confusion matrix"))
    assert run(["calibrate", model, "c.bin", *tone, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)["value"]
    before, after = (ModelEngine.load(path).module.heads for path in (model, "c.bin"))
    assert torch.allclose(after["tone"].linear.weight * value, before["tone"].linear.weight)
    assert torch.equal(after["stars"].linear.weight, before["stars"].linear.weight)
    stars = ["--data", "stars.csv", "task=stars", "label_column=stars", "pair_column=of"]
    for command in (["explain", model], ["calibrate", model, "d.bin"]):
        assert run([*command, *stars]) == 2
        assert "none whose samples are of a class each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.tasks={tone: {train: tone.csv, task: x}, b: {train: tone.csv}}", "data.tasks.tone"),
        ("data.tasks={a: {train: tone.csv}}", "data.tasks"),
        ("data.shared={format: volume}", "cannot be one of several tasks"),
        ("trainer.weighting=pgrad", "unknown weighting 'pgrad'"),
        ("data.alpha=2", "data.alpha"),
    ],
)
def test_wrong_settings_are_named(setting, words, capsys):
    assert run(["train", "a.yaml", setting]) == 2
    assert words in capsys.readouterr().err


def test_a_weighting_of_one_task_is_refused(capsys):
    Path("b.yaml").write_text(
        "data: {format: text, task: sequence_classification, train: tone.csv,"
        " tokenizer: wordpiece, sequence_length: 16}\n"
        "model: {architecture: encoder, args: {vocab_size: 8192, context_length: 16,"
        " num_layers: 1, dim: 16, heads: 2}}\n"
        "trainer: {weighting: pcgrad}\n"
    )
    assert run(["train", "b.yaml"]) == 2
    assert "would be ignored: there is one task" in capsys.readouterr().err
