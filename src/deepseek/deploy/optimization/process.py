"""A trial in a process of its own, with limits of time and memory, and what became of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import deepseek
from deepseek.deploy.optimization.trial import TrialTask

POLL_S = 0.1
MEMORY_SHARE = 0.8
"""Of the memory that is free when a search starts, that one trial may take."""
MODULE = "deepseek.deploy.optimization.trial"


@dataclass(frozen=True)
class Limits:
    """Of one process: seconds, and bytes of memory (`None`: no limit)."""

    seconds: float
    memory_bytes: int | None


def run_trial(
    kind: str,
    task: TrialTask,
    folder: Path,
    limits: Limits,
    tick: Callable[[], None] = lambda: None,
) -> dict:
    """Run one process to its end; return its result, or `error` with the reason.

    Args:
        kind: `convert` or `measure`.
        task: what it does.
        folder: of the candidate; the task, and in `log.txt` what was printed, are written there.
        limits: beyond which it is killed; `timed_out` is in the result then.
        tick: called about ten times a second.
    """
    path, result = (folder / f"{kind}.json").absolute(), Path(task.result)
    task.write(path)
    result.unlink(missing_ok=True)
    with open(folder / "log.txt", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, kind, str(path)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(task.base_threads),
            cwd=folder,  # libraries leave files where they run
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends all of it
        )  # fmt: skip
        try:
            killed = _wait(process, limits, tick)
        finally:
            _end(process)
    if killed:
        return {"error": killed[0], "timed_out": killed[1]}
    try:
        return json.loads(result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"error": _cause_of_death(process.returncode, folder / "log.txt")}


def available_memory_bytes() -> int | None:
    """Return what is free, with what the kernel would give back; `None` where nobody tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(value) * 1024 for value in values), None)


def _wait(
    process: subprocess.Popen, limits: Limits, tick: Callable[[], None]
) -> tuple[str, bool] | None:
    """Wait for the end; return why it is to be killed, and whether for its time."""
    end = time.monotonic() + limits.seconds
    while True:
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            tick()
        else:
            return None
        if time.monotonic() > end:
            return f"took longer than {limits.seconds:.0f} s", True
        taken = _resident_bytes(process.pid)
        if limits.memory_bytes is not None and taken > limits.memory_bytes:
            return f"took more than {limits.memory_bytes / 2**30:.1f} GiB of memory", False


def _end(process: subprocess.Popen) -> None:
    """Kill what is left of a process and of those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(threads: int) -> dict[str, str]:
    package = str(Path(deepseek.__file__).parents[1])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [package, *(os.path.abspath(path) for path in given if path)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": str(threads),
    }


def _resident_bytes(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _cause_of_death(code: int, log: Path) -> str:
    if code >= 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended with code {code} and no result: {said[-1][:200] if said else ''}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = {
        "SIGILL": ": an instruction that this processor does not have",
        "SIGKILL": ": killed from outside, as the kernel does when memory runs out",
    }.get(name, "")
    return f"crashed with {name}{hint}"
