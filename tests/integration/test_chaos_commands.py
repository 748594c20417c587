import json

import pytest

from deepseek.cli.main import run


@pytest.fixture
def digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["init", "digits"]) == 0


def last_json(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_verify_resume_says_exact(digits, tmp_path, capsys):
    assert run(["verify-resume", "--steps", "6", "--kills", "2", "--json"]) == 0
    verdict = last_json(capsys)
    assert verdict["is_exact"]
    assert verdict["num_steps"] == 6
    assert verdict["num_kills"] >= 1
    assert not list(tmp_path.glob("verify_resume_*"))


def test_chaos_tries_every_kind_of_fault(digits, capsys, monkeypatch):
    monkeypatch.setattr("deepseek.trainer.chaos.checks.LEAVE_WITHIN_S", 60.0)  # loaded machines
    assert run(["chaos", "--steps", "5", "--trials", "1", "--json"]) == 0
    results = last_json(capsys)
    assert {"kills", "signals", "every-step", "full-disk", "bad-numbers"} <= results.keys()
    for name, result in results.items():
        assert result["num_passed"] == result["num_trials"], (name, result)


def test_an_unknown_kind_of_fault_gets_the_nearest(digits, capsys):
    assert run(["chaos", "--only", "kill"]) == 2
    assert '"kills"' in capsys.readouterr().err
