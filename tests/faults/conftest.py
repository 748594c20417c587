"""Trials are forked from a server that has imported torch once, with one thread each."""

import multiprocessing
import os

import pytest

PRELOADED = ["torch", "deepseek.trainer", "deepseek.datasets", "tests.faults.trials"]


@pytest.fixture(scope="session", autouse=True)
def fork_server():
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
