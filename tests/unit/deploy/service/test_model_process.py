"""A model in a process of its own: it answers as the model does, and may die."""

import asyncio
import errno
import os
import shutil
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.deploy.service.conftest import make_engine

from deepseek.deploy.service import model_process, model_worker
from deepseek.deploy.service.batching import Batcher
from deepseek.deploy.service.frames import receive, send
from deepseek.deploy.service.model_process import ModelProcess
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.served_model import Facts, ModelSettings
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


class NoProcess:
    """What a link has where a thread of this process answers."""

    pid = returncode = None

    def poll(self):
        return None

    kill = wait = poll


class Beside(ModelProcess):
    """Its process is a thread, which answers a number of requests once all of them have come."""

    def __init__(self, model, count, max_batch=8):
        self._model, self._count, self._max_batch = model, count, max_batch
        super().__init__(ModelSettings(Path("m.bin")), batch_s=30.0, environment={})

    def _start(self):
        own, other = socket.socketpair()
        own.setblocking(False)
        threading.Thread(target=self._serve, args=(other,), daemon=True).start()
        return model_process._Link(NoProcess(), own), Facts(None)

    def _serve(self, channel):
        with suppress(EOFError), channel, channel.makefile("rb") as source:
            self._answer(channel, source)

    def _answer(self, channel, source):
        batcher = Batcher(max_batch=self._max_batch, target_s=10.0, pad=self._model.pad)
        for _ in range(self._count):
            head, samples = receive(source)
            batcher.add(head["id"], samples, head["expires"])
        while batcher._waiting:
            model_worker._compute(channel, self._model, batcher, batcher.take())
        source.read()

    def ask(self, *requests):
        """Return the answer to each request, or its error."""

        async def run():
            async with asyncio.timeout(20):
                waiting = (self.compute(each, soon()) for each in requests)
                answers = await asyncio.gather(*waiting, return_exceptions=True)
                if self._restarting is not None:
                    await self._restarting
            self.close()
            await asyncio.sleep(0)  # the connection is closed by then
            return answers

        return asyncio.run(run())


class OfTokens:
    """Two outputs of each token: itself, and its negative."""

    pad = 0

    def compute(self, batch):
        return np.stack([batch, -batch], -1).astype(np.float32)


def test_a_request_of_tokens_that_is_divided_between_batches_of_other_widths():
    short, long = np.full((3, 4), 5), np.full((3, 6), 7)
    answers = Beside(OfTokens(), 2, max_batch=2).ask(short, long)
    for tokens, rows in zip((short, long), answers, strict=True):
        np.testing.assert_array_equal(rows, OfTokens().compute(tokens))


def test_a_sample_that_fails_does_not_take_its_batch_along():
    class Picky(OfTokens):
        def compute(self, batch):
            if (batch == 9).any():
                raise IndexError("index 9 is out of range")
            return super().compute(batch)

    bad = np.full((1, 4), 9)
    first, failed, last = Beside(Picky(), 3).ask(bad - 1, bad, bad + 1)
    assert (first[0, 0].tolist(), last[0, 0].tolist()) == ([8, -8], [10, -10])
    assert isinstance(failed, Refusal)
    assert (failed.status, "index 9 is out of range" in failed.message) == (500, True)


def test_a_process_whose_answer_cannot_be_read_is_lost():
    class Garbled(Beside):
        def _answer(self, channel, source):
            receive(source)
            send(channel, {"ids": [1], "at": [], "seconds": 0.0}, np.zeros((1, 2)))
            source.read()

    (refused,) = Garbled(OfTokens(), 1).ask(np.zeros((1, 4)))
    assert isinstance(refused, Refusal)
    assert refused.status == 503


def test_a_restart_that_the_system_refuses_is_tried_again(monkeypatch):
    class Refused(Beside):
        starts = 0

        def _start(self):
            self.starts += 1
            if self.starts == 2:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super()._start()

    monkeypatch.setattr(model_process, "LONGEST_PAUSE_S", 0.0)
    process = Refused(OfTokens(), 1)
    first = process._link
    asyncio.run(process._restart())
    assert (process.starts, process.is_up, process._link is first) == (3, True, False)
    first.end()
    process.close()
