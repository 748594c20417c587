"""Resumed from any step, and extended: the same bits as a run that knew its end from the start."""

import shutil

import pytest
from tests.faults.trials import assert_same, factory, make_trainer

from deepseek.trainer.chaos import run_to_end

# a run that is extended has the same course only under a schedule that does not know its length
SETTINGS = {"schedule": "constant", "warmup": 0, "keep_checkpoints": 50}


@pytest.fixture(scope="module")
def four_epochs(tmp_path_factory):
    run = tmp_path_factory.mktemp("four") / "run"
    run_to_end(factory(epochs=4, **SETTINGS), run)
    return run


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory):
    run = tmp_path_factory.mktemp("three") / "run"
    run_to_end(factory(epochs=3, **SETTINGS), run)
    return run


@pytest.mark.parametrize("step", range(1, 16))
def test_resumed_from_every_step_and_extended(tmp_path, three_epochs, four_epochs, step):
    run = tmp_path / "run"
    shutil.copytree(three_epochs, run)
    for path in (run / "checkpoints").glob("step_*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    trainer = make_trainer(run, True, epochs=4, **SETTINGS)
    trainer.fit()
    assert trainer.step == 20
    assert_same(four_epochs, run)
