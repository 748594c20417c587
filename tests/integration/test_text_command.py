"""`deepseek train`, `evaluate`, `predict` and the examples, on text."""

import json
from pathlib import Path

import pytest

from deepseek.cli.main import run
from deepseek.config import load_config

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "text").glob("*.yaml"))
CLASSIFIER = """\
name: reviews
data:
  format: text
  task: sequence_classification
  train: reviews.csv
  val: 0.25
  tokenizer: wordpiece
  vocab_size: 100
  sequence_length: 16
model:
  architecture: encoder
  args: {vocab_size: 100, context_length: 16, num_layers: 1, dim: 16, heads: 2}
trainer: {epochs: 16, batch_size: 8, lr: 1e-2, loggers: [jsonl], monitor: val_loss}
"""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def reviews():
    rows = [f"a {'good' if n % 2 else 'bad'} film,{'pos' if n % 2 else 'neg'}" for n in range(64)]
    Path("reviews.csv").write_text("\n".join(["text,label", *rows]))
    Path("a.yaml").write_text(CLASSIFIER)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_configurations(path):
    assert load_config(path).data.format == "text"


def test_a_classifier_from_a_file_to_predictions(reviews, capsys):
    assert run(["train", "a.yaml"]) == 0
    model = "runs/reviews-1/model.bin"
    Path("more.jsonl").write_text('{"text": "a good film", "stars": "pos"}\n')
    capsys.readouterr()
    command = ["evaluate", model, "--data", "more.jsonl", "label_column=stars", "--json"]
    assert run(command) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["accuracy"] == metrics["macro_f1"] == 1.0
    Path("lines.txt").write_text("a bad film\n")
    assert run(["predict", model, "lines.txt", "more.jsonl", "--text", "good", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["text"] for entry in found] == ["good", "a bad film", "a good film"]
    assert [entry["top"][0]["label"] for entry in found] == ["pos", "neg", "pos"]
    assert run(["predict", model, "--text", "a good film"]) == 0
    assert capsys.readouterr().out.startswith("a good film  pos ")
    assert run(["predict", model]) == 2
    assert run(["evaluate", model, "--data", "more.jsonl", "task=language_modelling"]) == 2


def test_a_language_model_from_a_file_and_resumed(capsys):
    Path("a.txt").write_text("to be or not to be, that is the question. " * 60)
    Path("b.yaml").write_text(
        "data: {format: text, train: a.txt, tokenizer: characters, sequence_length: 16}\n"
        "model: {architecture: gpt, args: {context_length: 16, num_layers: 1, dim: 16, heads: 2}}\n"
        "trainer: {epochs: 1, batch_size: 8, lr: 1e-2, loggers: [jsonl]}\n"
    )
    assert run(["train", "b.yaml"]) == 0
    assert run(["train", "--resume", "trainer.epochs=2"]) == 0
    epochs = [
        json.loads(line) for line in Path("runs/run-1/metrics.jsonl").read_text().splitlines()
    ]
    losses = [epoch["val_loss"] for epoch in epochs if epoch["kind"] == "epoch"]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    capsys.readouterr()
    assert run(["evaluate", "runs/run-1/model.bin", "--data", "a.txt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["perplexity"] > 1
    assert run(["predict", "runs/run-1/model.bin", "--text", "to be"]) == 2


def test_what_is_wrong_with_the_data_exits_with_the_code_of_data(reviews, capsys):
    assert run(["train", "a.yaml", "data.label_column=labl"]) == 3
    assert 'did you mean "label"?' in capsys.readouterr().err
    assert run(["train", "a.yaml", "data.tokenizer=nowhere"]) == 3
    assert run(["train", "a.yaml", "model.args.pad_token=3"]) == 2
    assert "build the model with pad_token=0" in capsys.readouterr().err
