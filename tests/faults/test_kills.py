"""A run that is killed at random moments and resumed equals one that was not, bit for bit."""

from random import Random

import pytest
from tests.faults.trials import assert_same, factory

from deepseek.trainer.chaos import run_to_end, run_with_kills

SETTINGS = {
    "plain": {"num_workers": 0},
    "workers_bf16": {"num_workers": 2, "precision": "bf16"},
}
NUM_TRIALS, NUM_LONG_TRIALS = 20, 100


@pytest.fixture(scope="module", params=SETTINGS)
def undisturbed(request, tmp_path_factory):
    run = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, run, run_to_end(factory(**SETTINGS[request.param]), run)


def kill_and_compare(undisturbed, tmp_path, trial):
    name, expected, whole_s = undisturbed
    run = tmp_path / "run"
    draws = Random(f"{name} {trial}")
    run_with_kills(factory(**SETTINGS[name]), run, draws, 3, whole_s)
    assert_same(expected, run)


@pytest.mark.parametrize("trial", range(NUM_TRIALS))
def test_killed_and_resumed_equals_undisturbed(undisturbed, tmp_path, trial):
    kill_and_compare(undisturbed, tmp_path, trial)


@pytest.mark.long
@pytest.mark.parametrize("trial", range(NUM_TRIALS, NUM_LONG_TRIALS))
def test_two_hundred_killed_and_resumed_equal_undisturbed(undisturbed, tmp_path, trial):
    kill_and_compare(undisturbed, tmp_path, trial)
