"""`deepseek evaluate`, interrupted and gone on with."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepseek.cli.main import run
from deepseek.datasets import ImageDataset
from deepseek.models import ModelEngine
from deepseek.trainer.evaluation_part import digest_of_files

KILLED = """
import os, signal, sys

from deepseek.cli.main import run
from deepseek.trainer import evaluation_part

evaluation_part.SAVE_EVERY_S = 0.0
note = evaluation_part.EvaluationPart.note


def note_and_die(self, metrics, kept):
    note(self, metrics, kept)
    if self.num_batches == 4:
        with self._path.open("a") as file:
            file.write('{"batches": 5, "at"')
        os.kill(os.getpid(), signal.SIGKILL)


evaluation_part.EvaluationPart.note = note_and_die
run(sys.argv[1:])
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    engine = ModelEngine("resnet", num_layers=8, width=4, channels=1, num_classes=10)
    data = ImageDataset("digits", transform="resize_8", channels=1)
    engine.bind(data.spec)
    engine.save("digits.bin")
    for index in range(50):
        picture = Path("pictures") / data.class_names[data.targets[index]] / f"{index}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        data.image(index).save(picture)
    return ["evaluate", "digits.bin", "--data", "pictures", "--batch-size", "8"]


def test_one_that_was_killed_goes_on_and_finds_the_same(command, tmp_path, monkeypatch):
    options = ["--output", "whole.json", "--samples", "whole.csv"]
    assert run([*command, *options]) == 0
    options = ["--output", "cut.json", "--samples", "cut.csv"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *command, *options], cwd=tmp_path, capture_output=True,
        text=True,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    part = Path("cut.csv.part")
    assert json.loads(part.read_text().splitlines()[4])["batches"] == 4
    read = []
    fetch = ImageDataset.get_batch
    monkeypatch.setattr(
        ImageDataset, "get_batch", lambda self, at, *rest: read.extend(at) or fetch(self, at, *rest)
    )
    assert run([*command, *options]) == 0
    assert sorted(set(read)) == list(range(32, 50))
    assert not part.exists()
    assert Path("cut.csv").read_text() == Path("whole.csv").read_text()
    cut, whole = (json.loads(Path(name).read_text()) for name in ("cut.json", "whole.json"))
    assert cut == whole


def test_of_other_data_or_options_it_is_not_gone_on_with(command, capsys):
    part = Path("report.json.part")
    part.write_text('{"data": "other"}\n')
    assert run([*command, "--output", "report.json"]) == 2
    assert "report.json.part was begun by another run" in capsys.readouterr().err
    part.unlink()
    assert run([*command, "--output", "report.json"]) == 0
    assert not part.exists()
    assert "accuracy" in json.loads(Path("report.json").read_text())["metrics"]


def test_a_metric_that_is_no_number_is_null(command, capsys):
    engine = ModelEngine.load("digits.bin")
    with torch.no_grad():
        next(engine.module.parameters()).fill_(float("nan"))
    engine.save("digits.bin")
    assert run([*command, "--output", "found.json", "--json"]) == 0
    printed, written = capsys.readouterr().out, Path("found.json").read_text()
    assert "NaN" not in printed + written
    assert json.loads(written)["metrics"]["loss"] is None


def test_files_whose_names_are_no_utf8_are_counted(tmp_path):
    found = [digest_of_files(tmp_path, tmp_path / "part")]
    for name in ("b\udce9.png", "b\udcea.png"):
        (tmp_path / name).touch()
        found.append(digest_of_files(tmp_path, tmp_path / "part"))
    assert len(set(found)) == 3
