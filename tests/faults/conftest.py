"""Trials are forked from a server that has imported torch once, with one thread each."""

import pytest
import torch
from tests.faults.trials import factory

from deepseek.trainer.chaos import run_to_end


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbs."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_to_end(factory(), run)
    return run
