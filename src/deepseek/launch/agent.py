"""One torchrun agent: its command, and its life as a child of this process."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from deepseek.launch.endpoint import Endpoint
from deepseek.launch.environment import LAUNCH_DIR, THREADS, thread_default
from deepseek.launch.job import RENDEZVOUS_DEFAULTS, Job
from deepseek.launch.process import AGENT_PID
from deepseek.whole_file import replacing

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LINE_PREFIX = "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"
"""What torchrun sets before lines of workers, so that they can be told from its own."""
PREFIX = re.compile(rb"<<rank (\d+)>> ")
AGENT_LOG = "agent.log"
SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # the option is not in every version of torch
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Workers of each round open a store of their own. With torch's shared one (2.14) a host that joins
and becomes the first is not found: the others go on to use the address they have kept."""
STDOUT, STDERR = 1, 2
POLL_S = 0.5
KILL_AFTER_S = 15.0
"""Beyond the time workers have to save: torchrun's own clean-up."""


def agent_command(job: Job, logs: Path | str, endpoint: Endpoint | None, is_host: bool) -> list:
    """Return the command of the agent of this host.

    Args:
        job: what to start.
        logs: folder for the output of each worker.
        endpoint: where to meet; `None` for a single host, which meets itself at a free port.
        is_host: whether this host opens the rendezvous store.
    """
    settings = {
        **RENDEZVOUS_DEFAULTS,
        "join_timeout": str(job.timeout_s),
        **({"is_host": str(int(is_host))} if endpoint else {}),
        **job.rendezvous,
    }
    local_addr = job.local_addr or (endpoint.own_address() if endpoint else "127.0.0.1")
    return [
        *(sys.executable, "-u", "-m", "torch.distributed.run"),
        *("--nnodes", job.nnodes, "--nproc-per-node", str(job.nproc)),
        # for one host the same as --standalone, which would ignore the id
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", str(endpoint or "localhost:0")),
        *("--rdzv-id", job.run_id),
        *("--rdzv-conf", ",".join(f"{key}={value}" for key, value in settings.items())),
        *(("--local-addr", local_addr) if local_addr else ()),
        *("--max-restarts", str(job.max_restarts)),
        *("--signals-to-handle", ",".join(number.name for number in FORWARDED)),
        *("--log-dir", str(logs), "--redirects", "3", "--tee", "0:3"),
        *("-m", "deepseek.launch.worker", *job.program),
    ]


def show_command(job: Job) -> str:
    """Return shell lines that start the agent of this host, with all that they need."""
    endpoint = job.endpoints[0] if job.endpoints else None
    folder = f"${{{LAUNCH_DIR}}}"
    command = agent_command(
        job, f"{folder}/logs", endpoint, endpoint is not None and endpoint.is_local()
    )
    words = [
        f'"{word}"' if isinstance(word, str) and word.startswith(folder) else shlex.quote(word)
        for word in command
    ]
    environment = agent_environment(Path(), job)
    names = (THREADS, SHUTDOWN_TIMEOUT, OWN_STORE, LINE_PREFIX)
    shown = " ".join(f"{name}={shlex.quote(environment[name])}" for name in names)
    return f"export {LAUNCH_DIR}=$(mktemp -d) {shown}\n{' '.join(words)}"


def agent_environment(launch_dir: Path, job: Job) -> dict[str, str]:
    """Return the environment of an agent.

    `PET_*` variables are torchrun's way to change its options from outside; they would change the
    command that was shown to the user.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
    return {
        **thread_default(job.nproc),
        SHUTDOWN_TIMEOUT: str(job.grace_s),
        OWN_STORE: "1",
        **kept,
        LINE_PREFIX: "<<rank ${rank}>> ",
        LAUNCH_DIR: str(launch_dir),
    }


def tied_to_this_process(command: Sequence[str]) -> list[str]:
    """Return a command whose module is told to end, workers first, when this process is killed."""
    module = command.index("-m")
    tie = ("-m", "deepseek.launch.tied", str(os.getpid()))
    return [*command[:module], *tie, *command[module + 1 :]]


class Agent:
    """A running agent. Signals that reach this process go on to it.

    Args:
        command: from `agent_command`.
        launch_dir: private folder of this generation; its agent's log is written there.
        job: what it starts.
    """

    def __init__(self, command: Sequence[str], launch_dir: Path, job: Job) -> None:
        self.launch_dir = launch_dir
        self.received: signal.Signals | None = None
        self._grace_s = job.grace_s
        self._deadline: float | None = None
        self._shows_rank_0 = False
        self._log = (launch_dir / AGENT_LOG).open("ab")
        self._process = subprocess.Popen(
            tied_to_this_process(command),
            env=agent_environment(launch_dir, job),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        )
        with replacing(launch_dir / AGENT_PID) as draft:
            draft.write_text(str(self._process.pid))
        self._pumps = [
            threading.Thread(target=self._pump, args=streams, daemon=True)
            for streams in (
                (self._process.stdout, STDOUT),
                (self._process.stderr, STDERR),
            )
        ]

    @property
    def shows_rank_0(self) -> bool:
        """Whether rank 0 runs on this host, and its output was shown."""
        return self._shows_rank_0

    def wait(self, ask: Callable[[], signal.Signals | None] = lambda: None) -> int:
        """Wait for the end of the agent.

        Args:
            ask: called every now and then; a signal that it returns is passed on.

        Returns:
            The agent's exit code, negative if a signal has ended it.
        """
        for pump in self._pumps:
            pump.start()
        while (code := self._wait_a_moment()) is None:
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._process.kill()
            elif self._deadline is None and (number := ask()) is not None:
                self.stop(number)
        for pump in self._pumps:
            pump.join(KILL_AFTER_S)
        self._log.close()
        return code

    def stop(self, number: int) -> None:
        """Pass a signal on; after the time to save the agent is killed, and with it its workers."""
        if number == signal.SIGHUP:  # workers would die of it, unsaved
            number = signal.SIGTERM
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        self._deadline = self._deadline or time.monotonic() + self._grace_s + KILL_AFTER_S

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal that reached this process."""
        del frame
        if self.received is signal.SIGINT and number == signal.SIGINT:
            self._process.kill()  # asked twice: now
        elif self.received is None:
            self.received = signal.Signals(number)
            self.stop(number)

    def _wait_a_moment(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(POLL_S)
        return None

    def _pump(self, source: IO[bytes], target: int) -> None:
        """Show lines of rank 0; keep those of torchrun itself in a file."""
        with source:
            for line in source:
                found = PREFIX.search(line)
                if found is None:
                    self._log.write(line)
                    self._log.flush()
                elif found[1] == b"0":
                    self._shows_rank_0 = True
                    # a reader that has gone (`deepseek launch ... | head`) must not end it all
                    with contextlib.suppress(OSError):
                        os.write(target, PREFIX.sub(b"", line))
