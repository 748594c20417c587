"""What the control group (cgroup v1 or v2) of this process allows: memory and CPU time."""

import re

from deepseek.doctor.machine import Machine

ROOT = "/sys/fs/cgroup"
UNLIMITED_BYTES = 2**60
"""Version 1 writes a number near 2^63 for unlimited."""


def _folders(machine: Machine, controller: str) -> list[str]:
    """Return where files of a controller may lie: own group first, then its parents."""
    folders = []
    for line in (machine.read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "/")
        is_mine = controllers == "" or controller in controllers.split(",")
        mount = ROOT if controllers == "" else f"{ROOT}/{controller}"
        while is_mine:
            folders.append(f"{mount}{path}".rstrip("/"))
            if path in ("", "/"):
                break
            path = path.rpartition("/")[0]
    # In a container the own group is the root of what is mounted.
    return [*folders, ROOT, f"{ROOT}/{controller}"]


def memory_limit_bytes(machine: Machine) -> int | None:
    """Return the least limit of memory on the way to the root; `None` for none."""
    limits = []
    for folder in _folders(machine, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            number = machine.read_number(f"{folder}/{name}")
            if number is not None and 0 < number < UNLIMITED_BYTES:
                limits.append(number)
    return min(limits, default=None)


def cpu_limit(machine: Machine) -> float | None:
    """Return how many CPUs' time the group may use; `None` for no limit."""
    limits = []
    for folder in _folders(machine, "cpu"):
        words = (machine.read(f"{folder}/cpu.max") or "").split()
        if len(words) == 2 and all(word.isdigit() for word in words):
            limits.append(int(words[0]) / int(words[1]))
        quota = machine.read_number(f"{folder}/cpu.cfs_quota_us")
        period = machine.read_number(f"{folder}/cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            limits.append(quota / period)
    return min(limits, default=None)


def throttled_share(machine: Machine) -> float | None:
    """Return in which share of its periods the group had to wait for its quota."""
    for folder in _folders(machine, "cpu"):
        text = machine.read(f"{folder}/cpu.stat") or ""
        counts = {name: int(count) for name, count in re.findall(r"^(nr_\w+) (\d+)", text, re.M)}
        if counts.get("nr_periods"):
            return counts.get("nr_throttled", 0) / counts["nr_periods"]
    return None


def oom_kills(machine: Machine) -> int:
    """Return how many processes of the group the kernel has killed for memory."""
    for folder in _folders(machine, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            text = machine.read(f"{folder}/{name}") or ""
            found = re.search(r"^oom_kill (\d+)", text, re.M)
            if found:
                return int(found[1])
    return 0
