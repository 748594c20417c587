"""Where the facts come from: files, the environment, other commands, system calls.

Everything that a check asks goes through a `Machine`, so that a test hands it the facts of another
one: a folder in place of `/`, a dictionary in place of the environment.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepseek.doctor.adjtimex import ClockState, read_clock_state

COMMAND_TIMEOUT_S = 4.0
TORCH_TIMEOUT_S = 60.0
"""Importing torch from a cold network file system takes tens of seconds."""
RESOLVE_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 1.5


@dataclass(frozen=True)
class Output:
    """What a command printed.

    Attributes:
        code: exit code, negative for a signal; `None` where it was cut off by its time limit.
        out: standard output.
        err: standard error.
    """

    code: int | None
    out: str = ""
    err: str = ""


@dataclass(frozen=True)
class Space:
    """Room in a file system, in bytes; inodes where it counts them, else 0."""

    total_bytes: int
    free_bytes: int
    total_inodes: int = 0
    free_inodes: int = 0


def run_command(words: Sequence[str], timeout_s: float = COMMAND_TIMEOUT_S) -> Output | None:
    """Run a command; `None` where there is no such command."""
    if shutil.which(words[0]) is None:
        return None
    # Our own translations of what it says would not be understood.
    env = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            words, capture_output=True, timeout=timeout_s, env=env, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as cut:
        return Output(None, _text(cut.stdout), _text(cut.stderr))
    except OSError as error:
        return Output(127, err=str(error))
    return Output(done.returncode, _text(done.stdout), _text(done.stderr))


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", errors="replace")


def resolve_host(host: str) -> list[str] | None:
    """Return the addresses of `host`, none where it has none, `None` where nobody answers."""
    answer: list[list[str]] = []

    def ask() -> None:
        try:
            entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            answer.append(list(dict.fromkeys(str(entry[4][0]) for entry in entries)))
        except (OSError, UnicodeError):
            answer.append([])

    # The resolver has no time limit of its own that one could set.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(RESOLVE_TIMEOUT_S)
    return answer[0] if answer else None


def try_connect(host: str, port: int) -> str:
    """Return `open`, `refused`, `timeout` or the reason why the port cannot be reached."""
    try:
        with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S):
            return "open"
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return error.strerror or str(error)


def can_listen(port: int) -> bool:
    """Return whether a server could listen at `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def file_space(path: Path) -> Space | None:
    """Return the room of the file system of `path`; `None` where there is none."""
    try:
        stat = os.statvfs(path)
    except OSError:
        return None
    size = stat.f_frsize
    return Space(stat.f_blocks * size, stat.f_bavail * size, stat.f_files, stat.f_favail)


@dataclass
class Machine:
    """The facts of this machine, or of the one that a test describes.

    Attributes:
        root: below it lie `proc`, `sys`, `dev`, `etc`.
        env: environment variables.
        folder: where runs are written.
        hostname: of this machine.
        python: interpreter, and its version.
        command, resolve, connect, listen, space, clock_state, now: see the functions that are the
            defaults.
    """

    root: Path = Path("/")
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    folder: Path = field(default_factory=Path.cwd)
    hostname: str = field(default_factory=socket.gethostname)
    python: tuple[str, tuple[int, int, int]] = (sys.executable, sys.version_info[:3])
    command: Callable[[Sequence[str], float], Output | None] = run_command
    resolve: Callable[[str], list[str] | None] = resolve_host
    connect: Callable[[str, int], str] = try_connect
    listen: Callable[[int], bool] = can_listen
    space: Callable[[Path], Space | None] = file_space
    clock_state: Callable[[], ClockState | None] = read_clock_state
    now: Callable[[], float] = time.time
    _known: dict[tuple[str, ...], Output | None] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _locks: dict[tuple[str, ...], threading.Lock] = field(default_factory=dict, repr=False)

    def path(self, name: str) -> Path:
        """Return where the absolute path `name` lies."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """Return the text of a file, stripped; `None` where it cannot be read."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
        except OSError:
            return None

    def read_number(self, name: str) -> int | None:
        """Return the whole number that a file holds, and `None` for anything else."""
        text = self.read(name)
        return int(text) if text is not None and text.lstrip("-").isdigit() else None

    def entries(self, name: str) -> list[str]:
        """Return the names in a folder, sorted; none where it cannot be listed."""
        try:
            return sorted(entry.name for entry in self.path(name).iterdir())
        except OSError:
            return []

    def exists(self, name: str) -> bool:
        """Return whether there is something at `name`."""
        try:
            return self.path(name).exists()
        except OSError:
            return False

    def output(self, *words: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Output | None:
        """Run a command once for all the checks that ask for it; `None` where there is none."""
        with self._lock:
            lock = self._locks.setdefault(words, threading.Lock())
        with lock:
            if words not in self._known:
                self._known[words] = self.command(words, timeout_s)
        return self._known[words]

    def inside(self) -> str | None:
        """Return `kubernetes`, `container` or `None` for a plain machine."""
        if "KUBERNETES_SERVICE_HOST" in self.env or self.exists("/var/run/secrets/kubernetes.io"):
            return "kubernetes"
        marks = ("/.dockerenv", "/run/.containerenv")
        control = self.read("/proc/1/cgroup") or ""
        named = any(word in control for word in ("docker", "containerd", "kubepods", "libpod"))
        return "container" if named or any(map(self.exists, marks)) else None
