"""How `deepseek serve` reads the models of its command line."""

from pathlib import Path

import pytest

from deepseek.cli.serve import named_file


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("runs/digits-1/model.bin", ("digits-1", "1")),
        ("runs/lr=0.1/model.bin", ("lr-0.1", "1")),
        ("digits=runs/lr=0.1/model.bin", ("digits", "1")),
        ("digits/7=runs/digits-1/model.bin", ("digits", "7")),
    ],
)
def test_a_model_has_the_name_that_is_given_or_that_of_its_run(tmp_path, monkeypatch, entry, named):
    monkeypatch.chdir(tmp_path)
    for run in ("digits-1", "lr=0.1"):
        Path("runs", run).mkdir(parents=True)
        Path("runs", run, "model.bin").touch()
    found, path = named_file(entry)
    assert found == named
    assert path.is_file()
