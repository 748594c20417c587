"""A run that is killed at random moments and resumed equals one that was not, bit for bit."""

import random

import pytest
from tests.faults.trials import assert_same, outcome, run_with_kills, start

SETTINGS = {
    "plain": {"num_workers": 0},
    "workers_bf16": {"num_workers": 2, "precision": "bf16"},
}
NUM_TRIALS = 20


@pytest.fixture(scope="module", params=SETTINGS)
def undisturbed(request, tmp_path_factory):
    run = tmp_path_factory.mktemp(request.param) / "whole"
    process = start(run, **SETTINGS[request.param])
    process.join()
    assert process.exitcode == 0
    return request.param, outcome(run)


@pytest.mark.parametrize("trial", range(NUM_TRIALS))
def test_killed_and_resumed_equals_undisturbed(undisturbed, tmp_path, trial):
    name, expected = undisturbed
    draws = random.Random(f"{name} {trial}")
    run = tmp_path / "run"
    run_with_kills(run, [draws.uniform(0.05, 1.2) for _ in range(3)], **SETTINGS[name])
    assert_same(outcome(run), expected)
