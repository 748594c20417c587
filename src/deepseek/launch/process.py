"""Processes of one launch on this host: who they are, and that none of them is left."""

import contextlib
import os
import signal
import time
from pathlib import Path

AGENT_PID = "agent.pid"
"""File of the launch folder that holds the process id of the agent."""
GONE_TIMEOUT_S = 30.0
POLL_S = 0.05


def start_time(pid: int) -> str | None:
    """Return when a process began, in ticks since boot, or `None` if there is none.

    With the process id it names a process for good; ids alone are used again.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def register_worker(launch_dir: Path) -> None:
    """Write down that this process is a worker of the launch."""
    with contextlib.suppress(OSError):
        folder = launch_dir / "workers"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(os.getpid())).write_text(start_time(os.getpid()) or "")


def living_workers(launch_dir: Path) -> list[int]:
    """Return the process ids of registered workers that still run."""
    living = []
    for path in (launch_dir / "workers").glob("*"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.name)
            if start_time(pid) == path.read_text() != "":
                living.append(pid)
    return living


def end_workers(launch_dir: Path, timeout_s: float = GONE_TIMEOUT_S) -> list[int]:
    """Kill what is left of the workers and wait until they are gone.

    The kernel kills them with their agent; this makes sure before a next generation writes into
    the same run folder.

    Returns:
        Process ids that are still there: stuck in the kernel, beyond SIGKILL.
    """
    deadline = time.monotonic() + timeout_s
    while (living := living_workers(launch_dir)) and time.monotonic() < deadline:
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
    return living
