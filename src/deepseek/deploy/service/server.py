"""Runs the service: sockets, signals and connections that send nothing."""

import asyncio
import gc
import logging
import os
import resource
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deepseek.deploy.service.app import make_app
from deepseek.deploy.service.measures import Measures
from deepseek.deploy.service.model_process import ModelProcess
from deepseek.deploy.service.protection import Limits, is_loopback
from deepseek.deploy.service.served_model import ModelSettings
from deepseek.deploy.service.shelf import Pace, Shelf, Version
from deepseek.deploy.service.threads import WAIT_POLICY, choose_threads, thread_environment
from deepseek.deploy.service.tokens import read_hashes
from deepseek.errors import ConfigError
from deepseek.models.sliding_window import DEFAULT_OVERLAP

LOG = logging.getLogger("deepseek.service")
SILENT_S = 15.0
"""A connection that has not sent the head of a request by then is closed."""
MAX_HEAD_BYTES = 64 << 10
"""Of the head of a request, beyond what has come at once."""
UNREAD_S = 60.0
"""An answer of which less than `MIN_READ_BYTES` were taken meanwhile is given up, as in nginx."""
MIN_READ_BYTES = 64 << 10
SILENT_MODEL_S = 20.0
"""A model that has something to do, and does not answer for so long, is ended: at least."""


@dataclass(frozen=True)
class ServiceSettings:
    """What is served, where and to whom.

    Attributes:
        files: (model, version) -> model file.
        folder: of `NAME/VERSION.bin` and files of runtimes, or `None`.
        host: address that is bound to.
        port: 0: any that is free.
        probe_port: answers the probes of a cluster, without a token; `None`: there is none.
        token_file: hashes of the tokens that are let in; needed outside loopback.
        device: of the models.
        precision: of model files: `fp32`, or `bf16` for autocast.
        processes: of each model.
        threads: of each process; `None`: all cores but one, shared out.
        trust: SHA-256 of files that can run code, and may.
        pace: how they compute.
        limits: of a request.
        region: of volumes, `body` or `lungs`: what does not touch it is left out.
        overlap: of windows of volumes.
        flips: axes of volumes that outputs are means over, 0 for D.
    """

    files: dict[tuple[str, str], Path] = field(default_factory=dict)
    folder: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    probe_port: int | None = None
    device: str = "auto"
    precision: str = "fp32"
    processes: int = 1
    threads: int | None = None
    trust: tuple[str, ...] = ()
    pace: Pace = field(default_factory=Pace)
    limits: Limits = field(default_factory=Limits)
    region: str | None = None
    overlap: float = DEFAULT_OVERLAP
    flips: tuple[int, ...] = ()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the service."""
        return is_loopback(self.host)


class _Impatient(HttpToolsProtocol):
    """Closes connections that send no request, or the head of one too slowly or without an end.

    Those as well that do not take their answer: closing alone would wait until they do.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_in_head, self._head_bytes = False, 0
        self._seen: tuple[object, int] = (None, 0)
        self._wait()
        self._look_again()

    def data_received(self, data: bytes) -> None:
        was_in_head = self._is_in_head
        super().data_received(data)
        if was_in_head and self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._head_bytes = True, 0
        self._closing.cancel()
        self._wait()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._closing.cancel()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._closing = self.loop.call_later(SILENT_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait()  # one is being answered, the next has begun
        elif not self.transport.is_closing():
            self.transport.close()

    def _look_again(self) -> None:
        self._looking = self.loop.call_later(UNREAD_S, self._abort_if_unread)

    def _abort_if_unread(self) -> None:
        unread = self.transport.get_write_buffer_size()
        request, before = self._seen
        is_left = request is self.cycle and before > 0 and unread > 0
        if is_left and before - unread < MIN_READ_BYTES:
            self.transport.abort()
            return
        self._seen = (self.cycle, unread)
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing.cancel()
        self._looking.cancel()
        super().connection_lost(exc)


def open_shelf(settings: ServiceSettings, measures: Measures) -> Shelf:
    """Return the models of a service, the newest version of each loaded.

    Raises:
        ConfigError, CheckpointError: a model cannot be served.
    """
    threads = settings.threads or choose_threads(settings.processes)

    def build(name: str, version: str, path: Path) -> Version:
        told = thread_environment(threads, settings.processes)
        LOG.info(
            "%s/%s: %d processes of %d threads, %s=%s", name, version, settings.processes, threads,
            WAIT_POLICY, told.get(WAIT_POLICY, os.environ.get(WAIT_POLICY, "as libgomp likes")),
        )  # fmt: skip
        opened = ModelSettings(
            path, settings.device, settings.precision, threads, settings.pace.max_batch,
            settings.pace.target_ms / 1e3, settings.trust, settings.overlap, settings.flips,
        )  # fmt: skip
        models: list[ModelProcess] = []

        def note(count: int, seconds: float) -> None:
            measures.batch_size.labels(name, version).observe(count)
            measures.batch_seconds.labels(name, version).observe(seconds)

        try:
            for _ in range(settings.processes):
                batch_s = max(SILENT_MODEL_S, 2 * settings.limits.timeout_s)
                models.append(
                    ModelProcess(opened, batch_s=batch_s, environment=told, on_batch=note)
                )
            built = Version(name, version, models, settings.pace, settings.limits, settings.region)
        except BaseException:
            for model in models:
                model.close()
            raise
        if built.decoder is not None:
            built.decoder.start()
        return built

    shelf = Shelf(settings.files, settings.folder, build)
    shelf.open_all()
    return shelf


def serve(
    settings: ServiceSettings, on_ready: Callable[[Shelf, str], None] = lambda shelf, url: None
) -> None:
    """Serve until a signal; requests that have begun are answered first.

    Args:
        settings: what, where and to whom.
        on_ready: told the models and the address once it answers.

    Raises:
        ConfigError: the address cannot be bound to, or would be open to everybody.
    """
    hashes = tokens_for(settings.host, settings.token_file)
    with (
        bind(settings.host, settings.port) as listener,
        bind_probes(settings.host, settings.probe_port) as probes,
    ):
        measures = Measures()
        shelf = open_shelf(settings, measures)
        app = make_app(
            shelf, measures, settings.limits, hashes, is_loopback=settings.is_loopback,
            probes=probes,
        )  # fmt: skip
        forget_what_stays()
        on_ready(shelf, url_of(settings.host, listener))
        answer_requests(app, listener, timeout_s=settings.limits.timeout_s)


def tokens_for(host: str, token_file: Path | None) -> tuple[str, ...]:
    """Return the hashes of the tokens that are let in.

    Raises:
        ConfigError: others than this machine reach the address, and there is no token.
    """
    hashes = read_hashes(token_file) if token_file is not None else ()
    if not is_loopback(host) and not hashes:
        raise ConfigError(
            f"host={host} can be reached from other machines, and there is no token",
            fix="deepseek serve --new-token tokens.txt, then --token-file tokens.txt; or leave"
            " --host away",
        )
    return hashes


def bind_probes(host: str, port: int | None) -> AbstractContextManager[socket.socket | None]:
    """Return a socket that listens for the probes of a cluster; one without a port is `None`.

    Raises:
        ConfigError: the address cannot be bound to.
    """
    return nullcontext() if port is None else bind(host, port, "--probe-port")


def bind(host: str, port: int, option: str = "--port") -> socket.socket:
    """Return a socket that listens.

    Args:
        host: address that is bound to.
        port: 0: any that is free.
        option: that gives the port.

    Raises:
        ConfigError: the address cannot be bound to.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"host={host} {option.removeprefix('--').replace('-', '_')}={port} cannot be used:"
            f" {error}",
            fix=f"give another {option}",
        ) from error
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """Return the address of a service."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def answer_requests(app: FastAPI, listener: socket.socket, *, timeout_s: float) -> None:
    """Answer until a signal; requests that have begun are answered first, for so long."""
    _raise_file_limit()
    config = uvicorn.Config(
        app, http=_Impatient, loop="uvloop", ws="none", lifespan="on", log_level="error",
        access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=int(timeout_s) + 1,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])


def forget_what_stays() -> None:
    """Take modules and models out of what is searched for garbage: 0.3 s every other second."""
    gc.collect()
    gc.freeze()


def _raise_file_limit() -> None:
    """Let as many connections be open as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
