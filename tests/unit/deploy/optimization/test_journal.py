import json

import pytest

from deepseek.deploy.optimization import journal
from deepseek.deploy.optimization.journal import Journal

WHAT = {"candidate": {"runtime": "eager"}, "stage": "first"}


def test_a_trial_is_found_again(tmp_path):
    path = tmp_path / "trials.jsonl"
    Journal(path, {"model": "a"}).add(WHAT, {"ready_s": 1.5})
    assert Journal(path, {"model": "a"}).find(WHAT)["ready_s"] == 1.5


@pytest.mark.parametrize("known", [{"model": "b"}, {"model": "a", "data": "x"}])
def test_a_trial_of_another_model_or_other_data_is_not(tmp_path, known):
    path = tmp_path / "trials.jsonl"
    Journal(path, {"model": "a"}).add(WHAT, {})
    assert Journal(path, known).find(WHAT) is None


@pytest.mark.parametrize("name", ["fingerprint", "versions"])
def test_a_trial_of_another_machine_or_version_is_not(tmp_path, monkeypatch, name):
    path = tmp_path / "trials.jsonl"
    Journal(path, {}).add(WHAT, {})
    monkeypatch.setattr(journal, name, lambda: {"processor": "another"})
    assert Journal(path, {}).find(WHAT) is None


def test_the_half_line_of_a_killed_process_is_passed_over(tmp_path):
    path = tmp_path / "trials.jsonl"
    Journal(path, {}).add(WHAT, {"ready_s": 1.0})
    with path.open("a") as file:
        file.write('{"key": "ab')
    reopened = Journal(path, {})
    assert reopened.find(WHAT)["ready_s"] == 1.0
    reopened.add({"stage": "longer"}, {"ready_s": 2.0})
    assert Journal(path, {}).find({"stage": "longer"})["ready_s"] == 2.0
    assert len([line for line in path.read_text().splitlines() if line.endswith("}")]) == 2
    assert json.loads(path.read_text().splitlines()[0])["stage"] == "first"
