"""The page of benchmarks is what `tools/benchmarks_page.py` makes of the recorded results."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from deepseek.reproduce import Paper

ROOT = Path(__file__).parents[2]
RESULT = {
    "title": "Speed", "benchmark": "speed", "command": "python benchmarks/speed.py",
    "machine": {"chip": "abacus", "torch": "2.14"}, "date": "2026-11-26",
    "settings": {"steps": 3}, "notes": "We lose.", "table": "| a |\n|---|\n| 1 |",
}  # fmt: skip


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


page = load(ROOT / "tools" / "benchmarks_page.py")


def test_the_page_is_made_of_its_results():
    written = (ROOT / page.PAGE).read_text(encoding="utf-8")
    assert written == page.render_page(), "run python tools/benchmarks_page.py"


def test_a_result_shows_machine_settings_date_and_command():
    text = page.render_result(RESULT)
    for words in (
        "chip abacus, torch 2.14",
        "steps=3",
        "2026-11-26",
        "We lose.",
        RESULT["command"],
    ):
        assert words in text


@pytest.mark.parametrize(
    ("change", "message"),
    [({"notes": ""}, "no notes"), ({"settings": {"data": "/home/me"}}, "names a folder")],
)
def test_a_result_that_is_not_whole_is_refused(tmp_path, change, message):
    (tmp_path / "speed.json").write_text(json.dumps({**RESULT, **change}))
    with pytest.raises(ValueError, match=message):
        page.read_results(tmp_path)


def test_a_figure_that_was_missed_is_said_to_be():
    figure = {"name": "f", "expected": 2, "source": "s", "file": "f", "key": "k"}
    run = {"date": "d", "values": [1], "machine": "m", "time": "t"}
    paper = Paper(
        title="t", authors="A, B", year=2020, figures=[figure], commands=[["python"]], time="t",
        measured=[run],
    )  # fmt: skip
    assert "1, **not reached**; d, m, t" in page.render_papers({"p": paper})
    assert "not run" in page.render_papers({"p": paper.model_copy(update={"measured": []})})


def test_a_benchmark_records_what_the_page_needs(tmp_path, monkeypatch, capsys):
    measure = load(ROOT / "benchmarks" / "measure.py")
    file = tmp_path / "speed.json"
    words = ["speed.py", "--data", str(tmp_path), "--json", str(file), "--steps", "3"]
    monkeypatch.setattr(sys, "argv", words)
    args = argparse.Namespace(json=str(file), data=tmp_path, steps=3)
    measure.report(args, [{"a": 1}], "| a |\n|---|\n| 1 |", "notes")
    assert "| 1 |" in capsys.readouterr().out
    (result,) = page.read_results(tmp_path)
    assert result["command"] == f"python benchmarks/speed.py --data {tmp_path.name} --steps 3"
    assert result["records"] == [{"a": 1}]
    assert result["machine"]["torch"]
    args.json = "-"
    measure.report(args, [], "table", "notes")
    assert json.loads(capsys.readouterr().out)["benchmark"] == "speed"
