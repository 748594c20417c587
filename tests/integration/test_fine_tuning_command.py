"""`deepseek train --folds`, `explain` and `calibrate`."""

import json
from pathlib import Path

import pytest

from deepseek.cli.main import run

CONFIG = """
name: news
data:
  format: text
  task: sequence_classification
  train: news.csv
  val: 0.2
  tokenizer: wordpiece
  vocab_size: 200
  sequence_length: 16
model:
  architecture: encoder
  args: {vocab_size: 200, context_length: 16, num_layers: 1, dim: 16, heads: 2}
trainer: {epochs: 1, batch_size: 16, lr: 3e-3, lora: {rank: 2}, loggers: [], device: cpu}
"""


@pytest.fixture
def news(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))
    rows = [f"{'rose' if n % 2 else 'fell'} number {n // 2},{n % 2}" for n in range(60)]
    Path("news.csv").write_text("\n".join(["text,label", *rows]))
    Path("news.yaml").write_text(CONFIG)


def test_from_folds_to_calibrated_probabilities(news, capsys):
    assert run(["train", "news.yaml", "--folds", "3", "--fold", "1", "--together"]) == 0
    out = capsys.readouterr().out
    assert "3 folds, stratified; 20% of the rest held back to choose the model" in out
    assert " 0 across folds" in out
    written = json.loads(Path("runs/news-folds-1/folds.json").read_text())
    assert written["run"] == [1]
    assert written["keeps_together"]
    model = "runs/news-folds-1/fold_1/model.bin"
    assert run(["explain", model, "--data", "news.csv", "--steps", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["page"]).read_text().startswith("<!doctype html>")
    assert 0 <= found["metrics"]["accuracy"] <= 1
    assert run(["calibrate", model, "c.bin", "--data", "news.csv"]) == 0
    assert "calibration error" in capsys.readouterr().out
    assert run(["predict", "c.bin", "--text", "rose number 3"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fold", "0"], "are of --folds"),
        (["--folds", "3", "--dry-run"], "beside --dry-run or --resume"),
        (["--folds", "3", "data.val=news.csv"], "set data.val to a share"),
        (["--folds", "3", "data.task=language_modelling"], "they are made by classes"),
        (["trainer.lora={rank: 0}"], "rank"),
    ],
)
def test_what_cannot_be_is_refused(news, capsys, arguments, message):
    assert run(["train", "news.yaml", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_fold_0_of_the_user_is_left_alone(news, capsys):
    Path("fold_0").mkdir()
    Path("fold_0/picture.png").write_bytes(b"mine")
    assert run(["train", "news.yaml", "--folds", "2", "--run-dir", "."]) == 2
    assert "fold_0 holds something that is no run" in capsys.readouterr().err
    assert [path.name for path in Path("fold_0").iterdir()] == ["picture.png"]
    assert not Path("folds.json").exists()


def test_folds_of_other_settings_are_refused(news, capsys):
    place = Path("cv/fold_0")
    place.mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "metrics.jsonl"):
        (place / name).write_text("{}\n")  # of a run that ended before it had saved anything
    words = ["train", "news.yaml", "--folds", "2", "--fold", "0", "--run-dir", "cv"]
    assert run([*words, "trainer.lr=1e-3"]) == 0
    assert "{}\n" not in (place / "metrics.jsonl").read_text()
    capsys.readouterr()
    assert run([*words, "trainer.lr=1e-4"]) == 2
    assert "was trained with trainer.lr=0.001, not 0.0001" in capsys.readouterr().err
    assert run([*words, "trainer.lr=1e-3", "trainer.num_workers=0"]) == 0


def test_folds_on_several_ranks_need_a_run_dir(news, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["train", "news.yaml", "--folds", "2"]) == 2
    assert "add --run-dir" in capsys.readouterr().err
    assert not Path("runs").exists()
