"""`deepseek features`, `train` and `evaluate` on tables, and the examples."""

import json
from pathlib import Path

import numpy as np
import pytest

from deepseek.cli.main import run
from deepseek.config import load_config
from deepseek.datasets import read_features

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "recsys").glob("*.yaml"))
CLICKS = """\
name: clicks
data: {format: table, train: clicks.csv, val: 0.25, features: features.yaml, time_column: time}
model: {architecture: fm, args: {embedding_dim: 4}}
trainer: {epochs: 6, batch_size: 32, lr: 5e-2, loggers: [jsonl]}
"""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def clicks():
    rng = np.random.default_rng(0)
    lines = ["user,item,time,click"]
    for n in range(400):
        user, item = rng.integers(0, 5), rng.integers(0, 4)
        lines.append(f"u{user},i{item},{n},{int((user + item) % 2)}")
    Path("clicks.csv").write_text("\n".join(lines))
    Path("a.yaml").write_text(CLICKS)


def test_examples_are_configurations():
    kinds = set()
    for path in EXAMPLES:
        if path.stem.endswith("_features"):
            assert read_features(path).label
            kinds.add("features")
        else:
            assert load_config(path).data.format == "table"
            kinds.add("run")
    assert kinds == {"features", "run"}


def test_a_table_from_a_file_to_its_evaluation(clicks, capsys):
    told = ["features", "clicks.csv", "--label", "click", "--cross", "user*item"]
    assert run([*told, "--output", "features.yaml"]) == 0
    assert "3 features, labels click" in capsys.readouterr().out
    assert list(read_features("features.yaml").sparse) == ["user", "item"]
    assert run([*told, "--fit"]) == 0
    assert "vocabulary: [" in capsys.readouterr().out
    assert run(["train", "a.yaml"]) == 0
    best = json.loads(Path("runs/clicks-1/summary.json").read_text())["best"]
    assert best["val_auc"] > 0.95
    capsys.readouterr()
    assert run(["evaluate", "runs/clicks-1/model.bin", "--data", "clicks.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["auc"] > 0.95


def test_settings_that_the_model_knows_are_refused(clicks, capsys):
    Path("features.yaml").write_text("sparse: {user: {}, item: {}}\nlabel: {click: {}}\n")
    assert run(["train", "a.yaml", "trainer.epochs=1"]) == 0
    told = ["evaluate", "runs/clicks-1/model.bin", "--data", "clicks.csv"]
    assert run([*told, "labels=[item]"]) == 2
    assert "no setting of how a table is read" in capsys.readouterr().err
    Path("other.csv").write_text("user,click\nu1,1\n")
    assert run([*told[:3], "other.csv"]) == 3
    assert "'item' is missing" in capsys.readouterr().err


def test_mistakes_in_the_configuration_are_named(clicks, capsys):
    assert run(["train", "a.yaml", "data.layout=critoe"]) == 2
    assert "criteo" in capsys.readouterr().err
    assert run(["train", "a.yaml", "data.feature=x"]) == 2
    assert "did you mean `features`" in capsys.readouterr().err
    Path("features.yaml").write_text("sparze: {user: {}}\n")
    assert run(["train", "a.yaml"]) == 2
    assert "sparse" in capsys.readouterr().err
