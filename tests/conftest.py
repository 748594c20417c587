"""One thread: for models as small as those of the tests, more are not faster."""

import multiprocessing
import os
from multiprocessing import forkserver

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(1)


def pytest_sessionstart(session):
    """Begin the server of all forks: with which test it begins must change nothing."""
    if hasattr(session.config, "workerinput"):
        multiprocessing.set_forkserver_preload([
            "torch", "torch._dynamo", "torch.distributed.tensor.parallel",
            "torch.distributed.pipelining", "torch.distributed.fsdp", "deepseek.trainer",
            "deepseek.datasets", "deepseek.models", "deepseek.parallel.apply",
            "deepseek.deploy.report",
        ])  # fmt: skip
        forkserver.ensure_running()
