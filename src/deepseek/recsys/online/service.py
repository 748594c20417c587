"""The processes of a service: one that watches, one that answers, one that learns.

The one that watches has no threads, so that it can make the others by a fork at any time: they
begin in milliseconds. It makes them again when they end by accident, and they end with it, even
when it is killed.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from deepseek.deploy.service.protection import is_loopback
from deepseek.deploy.service.server import (
    answer_requests,
    bind,
    bind_probes,
    forget_what_stays,
    tokens_for,
    url_of,
)
from deepseek.errors import (
    CheckpointError,
    CommunicationError,
    ConfigError,
    DataError,
    DeepSeekError,
)
from deepseek.launch.worker import die_with_agent
from deepseek.recsys.online.app import make_app
from deepseek.recsys.online.event_log import open_log
from deepseek.recsys.online.learner_process import run_learner
from deepseek.recsys.online.online_model import OnlineModel, check_labels
from deepseek.recsys.online.ranker import Ranker
from deepseek.recsys.online.settings import OnlineSettings

LOG = logging.getLogger("deepseek.online")
ENDS = (signal.SIGTERM, signal.SIGINT)
STABLE_S = 30.0
"""A process that ran for so long may be made again at once."""
MAX_FAILURES = 5
FINAL = (ConfigError.exit_code, DataError.exit_code, CheckpointError.exit_code)
"""What a process that is made again would end with, too."""
AWAY, AWAY_S = 69, 1.0
"""Exit code of a process whose log did not answer when it began; how long it is waited with."""
SWITCH_S = 0.0005
"""What a thread that reads a new version may hold a request up for, at a time."""
LEARNER_NICE = 5
"""Where processors are short, requests go before updates."""


def serve(settings: OnlineSettings, on_ready: Callable[[str], None]) -> int:
    """Serve until a signal; return an exit code.

    Args:
        settings: of the service.
        on_ready: told the address once it listens.

    Raises:
        ConfigError: the address cannot be bound to, or would be open to everybody; the settings do
            not fit the model.
        LogDamagedError: the log was set aside.
    """
    torch.set_num_threads(1)  # more could not be forked
    server = settings.server
    token_file = None if server.token_file is None else Path(server.token_file)
    hashes = tokens_for(server.host, token_file)
    check_labels(OnlineModel.load(settings.model), settings)
    open_log(settings, writes=True).close()  # what is wrong with it is to be said here
    with (
        bind(server.host, server.port) as listener,
        bind_probes(server.host, server.probe_port) as probes,
    ):
        jobs = {"answers": lambda: _answer(settings, listener, probes, hashes)}
        if settings.trains:
            jobs["learns"] = lambda: _learn(settings)
        on_ready(url_of(server.host, listener))
        return Watch(jobs).run()


def _answer(
    settings: OnlineSettings, listener: socket.socket, probes: socket.socket | None,
    hashes: tuple[str, ...],
) -> None:  # fmt: skip
    log = open_log(settings, writes=True)
    is_own = is_loopback(settings.server.host)
    app = make_app(settings, log, Ranker(settings), hashes, is_loopback=is_own, probes=probes)
    sys.setswitchinterval(SWITCH_S)
    forget_what_stays()
    answer_requests(app, listener, timeout_s=5.0)


def _learn(settings: OnlineSettings) -> None:
    os.nice(LEARNER_NICE)
    forget_what_stays()
    learn(settings)


def learn(settings: OnlineSettings) -> None:
    """Learn until a signal, and write a checkpoint.

    Args:
        settings: of the service; others answer.

    Raises:
        ConfigError: another process learns in this folder; the settings do not fit the model.
    """
    check_labels(OnlineModel.load(settings.model), settings)
    told: list[int] = []
    for number in ENDS:
        signal.signal(number, lambda number, frame: told.append(number))
    run_learner(settings, lambda: bool(told))


@dataclass
class _Job:
    run: Callable[[], None]
    pid: int = 0
    began: float = 0.0
    starts: int = 0
    failures: int = 0


class Watch:
    """Keeps processes running, until a signal.

    Args:
        jobs: name -> what a process does.
    """

    def __init__(self, jobs: dict[str, Callable[[], None]]) -> None:
        self._jobs = {name: _Job(run) for name, run in jobs.items()}

    def run(self) -> int:
        """Return 0 after a signal, 1 when a process failed again and again.

        A process that cannot begin, as settings, data or a checkpoint do not fit, is not made
        again: its exit code is returned.
        """
        before = {number: signal.signal(number, _nothing) for number in ENDS}
        signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDS, signal.SIGCHLD})
        try:
            for name in self._jobs:
                self._begin(name)
            return self._watch()
        finally:
            self._end()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ENDS, signal.SIGCHLD})
            for number, handler in before.items():
                signal.signal(number, handler)

    def _watch(self) -> int:
        while True:
            if signal.sigwait({*ENDS, signal.SIGCHLD}) in ENDS:
                return 0
            for name, job in self._jobs.items():
                if not job.pid:
                    continue
                pid, status = os.waitpid(job.pid, os.WNOHANG)
                if pid:
                    job.pid = 0
                    code = os.waitstatus_to_exitcode(status)
                    lasted = time.monotonic() - job.began
                    if job.starts == 1 and code in FINAL and lasted <= STABLE_S:
                        return code
                    if code == AWAY:
                        job.starts = 0  # it has only waited
                        time.sleep(AWAY_S)
                        self._begin(name)
                        continue
                    job.failures = 1 if lasted > STABLE_S else job.failures + 1
                    if job.failures >= MAX_FAILURES:
                        LOG.error("the process that %s failed %d times", name, job.failures)
                        return 1
                    LOG.warning("the process that %s has ended; it is made again", name)
                    time.sleep(0.2 * (job.failures - 1))
                    self._begin(name)

    def _begin(self, name: str) -> None:
        job = self._jobs[name]
        job.starts += 1
        job.began, job.pid = time.monotonic(), os.fork()
        if job.pid == 0:
            _be_child(name, job.run)

    def _end(self) -> None:
        for job in self._jobs.values():
            if job.pid:
                os.kill(job.pid, signal.SIGTERM)
        for job in self._jobs.values():
            if job.pid:
                os.waitpid(job.pid, 0)


def _be_child(name: str, run: Callable[[], None]) -> None:
    code = 1
    try:
        for number in (*ENDS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ENDS, signal.SIGCHLD})
        die_with_agent(None)
        run()
        code = 0
    except CommunicationError as error:
        LOG.warning("the process that %s waits: %s", name, error.message)
        code = AWAY
    except DeepSeekError as error:
        LOG.error("the process that %s failed: %s", name, error)
        code = error.exit_code
    except Exception:
        LOG.exception("the process that %s failed", name)
    finally:
        logging.shutdown()
        os._exit(code)


def _nothing(number: int, frame: object) -> None:
    del number, frame  # sigwait takes the signal
