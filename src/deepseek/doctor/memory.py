"""Main memory: how much there is, how much this process may use, and how it is handed out."""

import re

from deepseek.doctor.control_group import memory_limit_bytes, oom_kills
from deepseek.doctor.finding import Findings, check, note, ok, problem, warning
from deepseek.doctor.machine import Machine
from deepseek.doctor.processor import usable_cpus

GIB = 2**30
MIN_AVAILABLE_BYTES = 2 * GIB
DOCKER_SHM_BYTES = 64 * 2**20
BATCH_BYTES = 64 * 2**20
"""A batch of 64 pictures of 256 x 256 in float32 is 50 MB."""
PREFETCHED_BATCHES = 3


def meminfo(machine: Machine, name: str) -> int | None:
    """Return an entry of `/proc/meminfo` in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", machine.read("/proc/meminfo") or "", re.M)
    return int(found[1]) * 1024 if found else None


def gib(size_bytes: int) -> str:
    """Return a size as text.

    Example:
        >>> gib(3 * 2**29)
        '1.5 GiB'
    """
    if size_bytes < GIB:
        return f"{size_bytes / 2**20:.3g} MiB"
    return (
        f"{size_bytes / GIB:.3g} GiB" if size_bytes < 1000 * GIB else f"{size_bytes / GIB:.0f} GiB"
    )


@check(
    "memory.available",
    asks="there is memory to train in",
    mend="end other processes, or take a larger machine",
)
def check_available(machine: Machine) -> Findings:
    """Memory that is not in use."""
    total, available = meminfo(machine, "MemTotal"), meminfo(machine, "MemAvailable")
    if total is None or available is None:
        return
    value = {"total_bytes": total, "available_bytes": available}
    what = f"{gib(available)} of {gib(total)} are available"
    yield (warning if available < MIN_AVAILABLE_BYTES else ok)(what, value)


@check(
    "memory.limit",
    asks="the control group allows the memory that the machine shows",
    mend="raise it: --memory of the container, limits: memory of the pod, --mem of Slurm;"
    " else set fewer loader workers",
)
def check_limit(machine: Machine) -> Findings:
    """What is above the limit of the control group is killed without a word."""
    total, limit = meminfo(machine, "MemTotal"), memory_limit_bytes(machine)
    kills = oom_kills(machine)
    if kills:
        mend = "memory was not enough before: raise the limit, or set fewer loader workers"
        yield warning(f"{kills} process(es) of this control group were killed", kills, mend=mend)
    if total is None or limit is None or limit >= total:
        yield ok("no limit below the memory of the machine", None)
    elif limit < 4 * GIB:
        yield warning(f"limited to {gib(limit)} of {gib(total)}", limit)
    else:
        yield note(f"limited to {gib(limit)}, while the machine shows {gib(total)}", limit)


@check(
    "memory.shared",
    asks="/dev/shm holds the batches of all loader workers",
    mend="start the container with --shm-size=16g or --ipc=host",
)
def check_shared(machine: Machine) -> Findings:
    """Loader workers hand batches over in `/dev/shm`; a full one is a bus error."""
    space = machine.space(machine.path("/dev/shm"))
    if space is None:
        yield problem("there is no /dev/shm: loader workers cannot hand over batches", None)
        return
    wanted = usable_cpus(machine) * PREFETCHED_BATCHES * BATCH_BYTES
    value = {"total_bytes": space.total_bytes, "free_bytes": space.free_bytes}
    mend = ""
    if machine.inside() == "kubernetes":
        mend = (
            "mount a volume at /dev/shm: emptyDir: {medium: Memory, sizeLimit: 16Gi}; it counts"
            " as memory of the pod"
        )
    if space.total_bytes <= DOCKER_SHM_BYTES:
        what = f"/dev/shm has only {gib(space.total_bytes)}: loader workers die of a bus error"
        yield problem(what, value, mend=mend)
    elif space.free_bytes < wanted and space.free_bytes < 0.5 * space.total_bytes:
        mend = "rm /dev/shm/torch_* once no training runs"
        yield warning(f"{gib(space.free_bytes)} of {gib(space.total_bytes)} free", value, mend=mend)
    elif space.free_bytes < wanted:
        what = f"/dev/shm has {gib(space.free_bytes)}; {gib(wanted)} would do for all cores"
        yield warning(what, value, mend=mend)
    else:
        yield ok(f"/dev/shm has {gib(space.free_bytes)} free", value)


@check(
    "memory.left_over",
    asks="killed runs have left nothing in /dev/shm",
    mend="rm /dev/shm/torch_* /dev/shm/nccl-* once no training runs",
)
def check_left_over(machine: Machine) -> Findings:
    """Files of torch and NCCL in `/dev/shm`."""
    left = [n for n in machine.entries("/dev/shm") if n.startswith(("torch_", "nccl-", "sem.mp-"))]
    if left:
        mend = f"if no training runs: {check_left_over.mend.partition(' once')[0]}"
        yield note(f"{len(left)} file(s) of torch or NCCL in /dev/shm", len(left), mend=mend)


@check(
    "memory.swap",
    asks="the machine does not swap while it trains",
    mend="sudo swapoff -a, and fewer loader workers",
)
def check_swap(machine: Machine) -> Findings:
    """Swap in use."""
    total, free = meminfo(machine, "SwapTotal"), meminfo(machine, "SwapFree")
    if total is None or free is None:
        return
    used = total - free
    if total and used > 0.5 * total and used > GIB:
        yield warning(f"{gib(used)} of {gib(total)} swap are in use", used)
    elif total:
        yield ok(f"{gib(total)} swap, {gib(used)} in use", used)
    else:
        yield ok("no swap", 0)


@check(
    "memory.overcommit",
    asks="the kernel lends memory freely: forks and CUDA reserve far more than they use",
    mend="sudo sysctl vm.overcommit_memory=0 (or 1)",
)
def check_overcommit(machine: Machine) -> Findings:
    """Strict accounting lets forks of a large process fail."""
    mode = machine.read_number("/proc/sys/vm/overcommit_memory")
    if mode == 2:
        yield warning("vm.overcommit_memory=2: loader workers and CUDA may fail to start", mode)
    elif mode is not None:
        yield ok(f"vm.overcommit_memory={mode}", mode)


@check(
    "memory.huge_pages",
    asks="large tensors may lie in huge pages",
    mend="sudo sh -c 'echo madvise > /sys/kernel/mm/transparent_hugepage/enabled'",
)
def check_huge_pages(machine: Machine) -> Findings:
    """Transparent huge pages: some per cent on the CPU."""
    text = machine.read("/sys/kernel/mm/transparent_hugepage/enabled") or ""
    found = re.search(r"\[(\w+)\]", text)
    if found is None:
        return
    if found[1] == "never":
        mend = f"for training on the CPU: {check_huge_pages.mend}"
        yield note("transparent huge pages are off", found[1], mend=mend)
    else:
        yield ok(f"transparent huge pages: {found[1]}", found[1])


CHECKS = (
    check_available,
    check_limit,
    check_shared,
    check_left_over,
    check_swap,
    check_overcommit,
    check_huge_pages,
)
