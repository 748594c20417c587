"""A model in a process of its own: it answers as the model does, and may die."""

import asyncio
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from tests.unit.deploy.service.conftest import make_engine

from deepseek.deploy.service.model_process import ModelProcess
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.served_model import ModelSettings
from deepseek.errors import CheckpointError, ConfigError

PIXELS = np.random.default_rng(0).integers(0, 255, (5, 1, 8, 8), dtype=np.uint8)


def start(path, batch_s=30.0, **settings):
    return ModelProcess(ModelSettings(path, "cpu", **settings), batch_s=batch_s, environment={})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.bin"
    make_engine().save(path)
    return path


def soon():
    return time.monotonic() + 20


def test_it_answers_as_the_model_and_is_back_after_its_death(path, tmp_path):
    path = shutil.copy(path, tmp_path)
    process = start(path, max_batch=4)
    expected = make_engine().eval().probs_of(torch.from_numpy(PIXELS)).detach()

    async def ask():
        return await process.compute(PIXELS, soon())

    async def run():
        answers = await asyncio.gather(*(ask() for _ in range(6)))  # more than a batch: in parts
        for rows in answers:
            assert np.allclose(rows, expected, atol=1e-6)
        waiting = asyncio.create_task(ask())
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.gather(waiting, return_exceptions=True)
        while process.is_up:
            await asyncio.sleep(0.01)
        with pytest.raises(Refusal, match="is started again") as refused:
            await ask()
        assert refused.value.status == 503
        assert int(refused.value.headers()["Retry-After"]) >= 1
        deadline = time.monotonic() + 60
        while not process.is_up:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert np.allclose(await ask(), expected, atol=1e-6)
        # one that is stuck is ended, and started again
        process._batch_s = 0.1
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await ask()
        assert not process.is_up

    try:
        asyncio.run(run())
    finally:
        process.close()
    # another file under the name is not served as the same version
    make_engine(1).save(path)
    with pytest.raises(CheckpointError, match="is not the file that was opened"):
        process._start()


def test_a_file_that_cannot_be_served_is_said_so(path, tmp_path):
    broken = tmp_path / "broken.bin"
    broken.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="broken"):
        start(broken)
    with pytest.raises(ConfigError, match="cannot be used here"):
        ModelProcess(ModelSettings(path, "cuda:99"), batch_s=1.0, environment={})
