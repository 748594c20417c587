"""A model in a process of its own, which has the cores while the service reads and writes HTTP.

A process that ends, or does not answer, is started again; until then its batches are refused with
503. Nothing that a model does can take the service with it.
"""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from deepseek.deploy.service.frames import pack, receive, receive_async, send
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.served_model import Facts, ModelSettings
from deepseek.errors import CheckpointError, ConfigError, DeepSeekError

LOG = logging.getLogger("deepseek.service")
OPEN_S = 900.0
"""Until a model is open and warmed up: compiling takes minutes."""
LONGEST_PAUSE_S = 30.0
RETRY_S = 3.0


@dataclass(eq=False)
class _Question:
    """A request that the process has been given: its rows come one by one, or many at a time."""

    answer: asyncio.Future
    rows: list[np.ndarray]
    num_missing: int


class _Link:
    """One life of the process."""

    def __init__(self, process: subprocess.Popen, channel: socket.socket) -> None:
        self.process, self.channel = process, channel
        self.writer: asyncio.StreamWriter | None = None
        self.questions: dict[int, _Question] = {}
        self.silent_since: float | None = None  # has something to do, and does not answer
        self.attaching: asyncio.Task | None = None
        self.listening: asyncio.Task | None = None

    def end(self) -> None:
        """Kill the process, if it is still there."""
        if self.writer is None:
            self.channel.close()
        else:
            with suppress(RuntimeError):  # its loop is closed already
                self.writer.transport.abort()
        self.process.kill()
        self.process.wait()


class ModelProcess:
    """See the module; it implements `Model`.

    Args:
        settings: of the model.
        batch_s: a process that does not answer for longer is ended.
        environment: of the process, beside that of this one.
        on_batch: told the size of each batch and the seconds that it took.

    Raises:
        ConfigError: the model cannot be opened.
    """

    def __init__(
        self,
        settings: ModelSettings,
        *,
        batch_s: float,
        environment: dict[str, str],
        on_batch: Callable[[int, float], None] = lambda count, seconds: None,
    ) -> None:
        self._settings, self._batch_s, self._environment = settings, batch_s, environment
        self._link: _Link | None = None
        self._starting: _Link | None = None  # by a thread, which outlives the loop it is awaited in
        self._restarting: asyncio.Task | None = None
        self._is_closed = False
        self._on_batch, self._number = on_batch, 0
        self._digest = ""  # of the file that was opened first
        self._link, self._facts = self._start()
        self._starting = None

    @property
    def facts(self) -> Facts:
        """What the model takes."""
        return self._facts

    @property
    def is_up(self) -> bool:
        """Whether the process is there and has opened the model."""
        return self._link is not None and self._link.process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._link is None else self._link.process.pid

    async def compute(self, samples: np.ndarray, expires: float) -> np.ndarray:
        """Return the probabilities of samples (B, ...), in their order.

        Raises:
            Refusal: 500, the model failed; 503, its process has ended.
        """
        link = self._link
        if link is None:
            raise _down()
        if link.writer is None:
            if link.attaching is None:
                link.attaching = asyncio.create_task(self._attach(link))
            await asyncio.shield(link.attaching)
        self._number += 1
        answer = asyncio.get_running_loop().create_future()
        count = len(samples)
        link.questions[self._number] = _Question(answer, [samples] * count, count)
        number = self._number
        try:
            if link.writer is None or link.writer.is_closing():
                raise _down()
            link.silent_since = link.silent_since or time.monotonic()
            link.writer.writelines(pack({"id": number, "expires": expires}, samples))
            return await answer
        except asyncio.CancelledError:
            now = time.monotonic()
            if now - (link.silent_since or now) > self._batch_s:
                self._lose(link, f"no answer within {self._batch_s:g} s")
            raise
        finally:
            link.questions.pop(number, None)

    async def _attach(self, link: _Link) -> None:
        try:
            reader, link.writer = await asyncio.open_connection(sock=link.channel)
        except OSError as error:
            self._lose(link, str(error))
        else:
            link.listening = asyncio.create_task(self._listen(link, reader))

    async def _listen(self, link: _Link, reader: asyncio.StreamReader) -> None:
        """Hand out answers, until the process ends."""
        try:
            while True:
                head, rows = await receive_async(reader)
                link.silent_since = None
                if rows is not None:
                    self._on_batch(len(rows), head["seconds"])
                lengths = head.get("lengths", [None] * len(head["ids"]))
                for at, (number, place) in enumerate(zip(head["ids"], head["at"], strict=True)):
                    question = link.questions.get(number)
                    if question is not None and not question.answer.done():
                        row = None if rows is None else rows[at][: lengths[at]]
                        _fill(question, place, row, head)
        except (OSError, EOFError) as error:
            self._lose(link, f"it has ended ({type(error).__name__})")
        except ValueError as error:  # nobody would listen from now on
            self._lose(link, f"its answer cannot be read: {error}")

    def close(self) -> None:
        """End the process."""
        self._is_closed = True
        for link in (self._link, self._starting):
            if link is not None:
                link.end()
        self._link = self._starting = None

    def _lose(self, link: _Link, why: str) -> None:
        """Start the process again, unless that is done already."""
        if self._is_closed or self._link is not link:
            return
        self._link = None
        link.end()
        for question in link.questions.values():
            if not question.answer.done():
                question.answer.set_exception(_down())
        code = link.process.returncode
        LOG.error("%s: its process is lost (exit code %s): %s", self._settings.path, code, why)
        self._restarting = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        pause_s = 0.0
        while not self._is_closed:
            try:
                link, _ = await asyncio.to_thread(self._start)
            except (DeepSeekError, OSError) as error:  # too many files are open, say
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s + 1)
                said = f"{self._settings.path} cannot be started: {error}"
                said = error.message if isinstance(error, DeepSeekError) else said
                LOG.error("%s; again in %g s", said, pause_s)
                await asyncio.sleep(pause_s)
                continue
            if self._is_closed:
                link.end()
                return
            self._link, self._starting = link, None
            LOG.warning("%s: its process runs again", self._settings.path)
            return

    def _start(self) -> tuple[_Link, Facts]:
        """Start the process, and wait until it has opened the model."""
        own, other = socket.socketpair()
        command = [sys.executable, "-m", "deepseek.deploy.service.model_worker"]
        try:
            process = subprocess.Popen(
                [*command, str(other.fileno()), str(os.getpid())], pass_fds=(other.fileno(),),
                stdin=subprocess.DEVNULL, env={**os.environ, **self._environment},
            )  # fmt: skip
        except OSError:
            own.close()
            raise
        finally:
            other.close()
        link = self._starting = _Link(process, own)
        began = time.monotonic()
        try:
            own.settimeout(OPEN_S)
            send(own, self._settings.to_json())
            with own.makefile("rb") as source:
                head, _ = receive(source)
        except (OSError, EOFError) as error:
            link.end()
            raise ConfigError(
                f"{self._settings.path} cannot be served: its process ended with"
                f" {process.returncode} after {time.monotonic() - began:.0f} s",
                fix="see its output above; a model that does not fit into memory ends so",
            ) from error
        if "facts" not in head:
            link.end()
            kind = CheckpointError if head["kind"] == "CheckpointError" else ConfigError
            raise kind(head["error"], fix=head["fix"])
        self._digest = self._digest or head["digest"]
        if head["digest"] != self._digest:
            link.end()
            raise CheckpointError(
                f"{self._settings.path} is not the file that was opened as this version",
                fix="put the old file back, or the new one beside it as another version",
            )
        for said in head["warnings"]:
            LOG.warning("%s", said)
        own.setblocking(False)
        return link, Facts.from_json(head["facts"])


def _fill(question: _Question, place: int, row: np.ndarray | None, head: dict) -> None:
    """Note a row of a request, or that the model failed; the last one answers it."""
    if row is None:
        said = str(head["error"]).splitlines()[0]
        failed = Refusal(500, f"the model failed: {said}", fix="see the log of the service")
        question.answer.set_exception(failed)
        return
    question.rows[place] = row
    question.num_missing -= 1
    if not question.num_missing:
        rows = question.rows
        question.answer.set_result(rows[0][None] if len(rows) == 1 else np.stack(rows))


def _down() -> Refusal:
    return Refusal(
        503, "the process of the model has ended and is started again", fix="try again later",
        retry_after_s=RETRY_S,
    )  # fmt: skip
