"""The whole path through the command line, on a model and a run as small as they get."""

import csv
import json
import signal
from pathlib import Path

import pytest

from deepseek.cli.main import run

SMALL = [
    "trainer.epochs=null",
    "trainer.max_steps=2",
    "trainer.loggers=[jsonl]",
    "trainer.num_workers=0",
    "model.args.num_layers=1",
    "model.args.dim=8",
    "model.args.heads=2",
    "model.args.patch_size=4",
]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def test_from_a_template_to_predictions(capsys):
    assert run(["init", "digits"]) == 0
    assert run(["train", *SMALL]) == 0
    assert "changed  model.args.dim: 64 -> 8" in capsys.readouterr().out
    folder = Path("runs/digits-1")
    assert run(["runs", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)[0]
    assert (record["run"], record["status"]) == ("digits-1", "finished")
    model = str(folder / "model.bin")
    assert run(["evaluate", model, "--data", "digits", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["metrics"]["accuracy"] <= 1
    samples = sorted((folder / "evaluation" / "samples").glob("*.png"))
    assert run(["predict", model, str(samples[0].parent), "--top-k", "3", "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert [Path(entry["file"]) for entry in predicted] == samples
    probs = [entry["prob"] for entry in predicted[0]["top"]]
    assert len(probs) == 3
    assert probs == sorted(probs, reverse=True)
    assert run(["predict", model, str(samples[0].parent), "--output", "found.parquet"]) == 0
    assert f"found.parquet: {len(samples)} rows, 0 of them" in capsys.readouterr().out
    command = ["evaluate", model, "--data", "digits", "--output", "m.json", "--samples", "s.csv"]
    assert run(command) == 0
    metrics = json.loads(Path("m.json").read_text())["metrics"]
    with open("s.csv") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["target"] == row["label"] for row in rows) / len(rows)
    assert metrics["accuracy"] == pytest.approx(right)
    Path("broken.png").write_bytes(b"none")
    capsys.readouterr()
    assert run(["predict", model, "broken.png", str(samples[0]), "--json"]) == 3
    broken, good = json.loads(capsys.readouterr().out)
    assert "broken.png" in broken["error"]
    assert good["top"]
    assert run(["predict", model, "broken.png", "--strict"]) == 3
    assert run(["predict", model, str(samples[0]), "--precision", "int3"]) == 2
    capsys.readouterr()
    assert run(["report"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert run(["train", "--resume", "trainer.max_steps=3"]) == 0
    assert json.loads((folder / "summary.json").read_text())["step"] == 3


def test_a_dry_run_prints_what_a_rank_of_many_needs_and_writes_nothing(capsys):
    assert run(["init", "digits"]) == 0
    before = sorted(Path().rglob("*"))
    plan = ["trainer.parallel=fsdp2-tp2", "trainer.precision=fp32"]
    assert run(["train", "--dry-run", "--world-size", "4", "--rank", "3", *SMALL, *plan]) == 0
    text = capsys.readouterr().out
    assert "dry run of rank 3 of 4" in text
    assert "parallel fsdp2-tp2: 4 processes" in text
    assert "MiB sent by this rank" in text
    assert run(["train", "--dry-run", *SMALL]) == 0  # as many as the plan takes: one
    assert "dry run of rank 0 of 1" in capsys.readouterr().out
    assert run(["train", "--dry-run", "--world-size", "8", *SMALL, *plan]) == 2
    assert "which would work with 8 processes" in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "options", [["--world-size", "8"], ["--rank", "0"], ["--dry-run", "--run-dir", "here"]]
)
def test_options_that_the_kind_of_run_would_ignore_are_refused(options, capsys):
    assert run(["init", "digits"]) == 0
    assert run(["train", *options, *SMALL]) == 2
    assert f"{options[-2]}={options[-1]}" in capsys.readouterr().err


def test_a_run_is_its_seed():
    from safetensors.numpy import load_file

    weights = []
    for seed in (0, 0, 1):
        assert run(["init", "digits", "--force"]) == 0
        assert run(["train", *SMALL, "model.args.dropout=0.1", f"seed={seed}"]) == 0
        weights.append(load_file(f"runs/digits-{len(weights) + 1}/model.bin"))
    first, same, other = weights
    assert all((first[name] == same[name]).all() for name in first)
    assert not (first["head.weight"] == other["head.weight"]).all()


def test_the_output_setting_and_the_next_number_are_obeyed():
    assert run(["init", "digits", "--force"]) == 0
    for _ in range(2):
        assert run(["train", *SMALL, "output=out"]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["digits-1", "digits-2"]


def test_what_cannot_be_predicted_exits_with_the_code_of_data(capsys):
    assert run(["predict", "model.bin", "missing.png"]) == 3
    assert "missing.png does not exist" in capsys.readouterr().err
