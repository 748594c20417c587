"""The limits of this process (`ulimit`), read from `/proc/self/limits`."""

import re
from dataclasses import dataclass

from deepseek.doctor.finding import Findings, check, note, ok, warning
from deepseek.doctor.machine import Machine

MIN_FILES = 4096
"""Each tensor of a loader worker is a file descriptor for a while; so is each TCP connection."""
MIN_PROCESSES = 4096
MIN_STACK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Limit:
    """Soft and hard limit; `None` for unlimited."""

    soft: int | None
    hard: int | None

    def is_below(self, least: int) -> bool:
        """Return whether the soft limit is below `least`."""
        return self.soft is not None and self.soft < least


def read_limit(machine: Machine, name: str) -> Limit | None:
    """Return a limit by the name it has in `/proc/self/limits`; `None` where it is not there."""
    text = machine.read("/proc/self/limits") or ""
    found = re.search(rf"^{name}\s+(\S+)\s+(\S+)", text, re.M)
    if found is None:
        return None
    soft, hard = (None if word == "unlimited" else int(word) for word in found.groups())
    return Limit(soft, hard)


@check(
    "limits.files",
    asks="many files may be open: loader workers and sockets need them",
    mend="ulimit -n 65536 before the start, limits.conf (nofile), or --ulimit nofile=65536",
)
def check_files(machine: Machine) -> Findings:
    """Open files."""
    limit = read_limit(machine, "Max open files")
    if limit is None:
        return
    if limit.is_below(MIN_FILES):
        yield warning(f"only {limit.soft} files may be open ({limit.hard} at most)", limit.soft)
    else:
        yield ok(f"{limit.soft or 'any number of'} files may be open", limit.soft)


@check(
    "limits.processes",
    asks="many processes and threads may be started",
    mend="ulimit -u 65536, limits.conf (nproc), or a larger --pids-limit of the container",
)
def check_processes(machine: Machine) -> Findings:
    """Processes by ulimit and by control group."""
    limit = read_limit(machine, "Max processes")
    most = [limit.soft] if limit is not None and limit.soft is not None else []
    for path in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        number = machine.read_number(path)
        most += [number] if number is not None else []
    if not most:
        yield ok("any number of processes may be started", None)
    elif min(most) < MIN_PROCESSES:
        yield warning(f"only {min(most)} processes and threads may be started", min(most))
    else:
        yield ok(f"{min(most)} processes and threads may be started", min(most))


@check(
    "limits.stack",
    asks="threads have a stack of 8 MiB or more",
    mend="ulimit -s 8192 before the start",
)
def check_stack(machine: Machine) -> Findings:
    """Stack."""
    limit = read_limit(machine, "Max stack size")
    if limit is None:
        return
    if limit.is_below(MIN_STACK_BYTES):
        yield warning(f"the stack is limited to {(limit.soft or 0) / 2**20:.3g} MiB", limit.soft)
    else:
        yield ok("the stack is large enough", limit.soft)


@check(
    "limits.address_space",
    asks="address space and file size are not limited: CUDA reserves far more than it uses",
    mend="ulimit -v unlimited; ulimit -f unlimited (Slurm: --mem in place of ulimit)",
)
def check_address_space(machine: Machine) -> Findings:
    """Address space and size of a file."""
    limited = {
        name: limit.soft
        for name in ("Max address space", "Max file size", "Max data size")
        if (limit := read_limit(machine, name)) is not None and limit.soft is not None
    }
    if limited:
        shown = ", ".join(f"{name[4:]} {size / 2**30:.3g} GiB" for name, size in limited.items())
        yield warning(f"limited: {shown}", limited)
    else:
        yield ok("address space and file size are unlimited", limited)


@check(
    "limits.core",
    asks="a crash does not fill the disk with a core dump as large as the memory",
    mend="ulimit -c 0, unless you look for a crash",
)
def check_core(machine: Machine) -> Findings:
    """Core dumps."""
    limit = read_limit(machine, "Max core file size")
    if limit is None:
        return
    pattern = machine.read("/proc/sys/kernel/core_pattern") or "core"
    if limit.soft == 0 or pattern.startswith("|"):
        yield ok("crashes leave no core dump in the run's folder", limit.soft)
    else:
        what = f"each process that crashes leaves a core dump as large as its memory ({pattern})"
        yield note(what, limit.soft, mend="ulimit -c 0 turns it off")


CHECKS = (check_files, check_processes, check_stack, check_address_space, check_core)
