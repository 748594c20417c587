"""The processors: how many may be used, how fast they are in bf16, and how threads are set."""

import re

from deepseek.doctor.control_group import cpu_limit, throttled_share
from deepseek.doctor.finding import Findings, check, note, ok, problem, warning
from deepseek.doctor.machine import Machine

CPUS = "/sys/devices/system/cpu"
NODES = "/sys/devices/system/node"
BUSY = 1.5
"""Load per CPU from which on others are in the way."""
SAVING_DRIVERS = ("acpi-cpufreq", "pcc-cpufreq", "cppc_cpufreq")
"""With intel_pstate and amd-pstate the governor `powersave` does go up under load."""


def count_listed(text: str) -> int:
    """Return how many CPUs a list of the kernel names.

    Example:
        >>> count_listed("0-3,8,10-11")
        7
    """
    total = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def host_cpus(machine: Machine) -> int:
    """Return how many CPUs the machine shows."""
    return count_listed(machine.read(f"{CPUS}/online") or "0")


def allowed_cpus(machine: Machine) -> int:
    """Return on how many CPUs this process may run."""
    status = machine.read("/proc/self/status") or ""
    found = re.search(r"^Cpus_allowed_list:\s+(\S+)", status, re.M)
    return count_listed(found[1]) if found else host_cpus(machine)


def usable_cpus(machine: Machine) -> int:
    """Return how many CPUs this process has: affinity and quota together."""
    quota = cpu_limit(machine)
    return max(1, min(allowed_cpus(machine), round(quota) if quota else 1 << 20))


@check(
    "cpu.count",
    asks="threads are set for the CPUs that this process really has",
    mend="set OMP_NUM_THREADS and data.num_workers by the CPUs of the quota",
)
def check_count(machine: Machine) -> Findings:
    """Affinity and quota against what the machine shows: torch starts threads by affinity."""
    shown, allowed, quota = host_cpus(machine), allowed_cpus(machine), cpu_limit(machine)
    value = {"host": shown, "allowed": allowed, "quota": quota}
    if quota and quota < 0.75 * allowed and "OMP_NUM_THREADS" not in machine.env:
        what = f"the quota is {quota:g} CPUs, torch would start {allowed} threads"
        mend = f"export OMP_NUM_THREADS={max(1, int(quota))}"
        yield warning(what, value, mend=mend)
    elif usable_cpus(machine) == 1 and shown > 1:
        mend = "Slurm: --cpus-per-task; container: --cpus; else taskset"
        yield warning(f"this process has one CPU of {shown}", value, mend=mend)
    else:
        limited = f", {quota:g} by quota" if quota else ""
        yield ok(f"{allowed} of {shown} CPUs{limited}", value)


@check(
    "cpu.throttled",
    asks="the control group does not have to wait for its quota",
    mend="raise the CPU limit or remove it, or set fewer threads and loader workers",
)
def check_throttled(machine: Machine) -> Findings:
    """Periods in which the quota was used up."""
    share = throttled_share(machine)
    if share is not None and share > 0.1:
        yield warning(f"in {share:.0%} of its periods the CPU quota was used up", share)


@check(
    "cpu.bf16",
    asks="the CPU computes bf16 in hardware",
    mend="for training on the CPU, set trainer.precision=fp32 here",
)
def check_bf16(machine: Machine) -> Findings:
    """AMX, AVX-512 BF16 or the ARM extension; and AVX2 at least."""
    text = machine.read("/proc/cpuinfo") or ""
    found = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M)
    if found is None:
        return
    flags = set(found[1].split())
    kinds = [
        name for name in ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16") if name in flags
    ]
    is_arm = "asimd" in flags
    if not is_arm and "avx2" not in flags:
        yield warning("the CPU has no AVX2: many times slower", kinds, mend="take a newer machine")
    elif kinds:
        speed = "fast" if "amx_bf16" in kinds else "in hardware"
        yield ok(f"bf16 is computed {speed}: {', '.join(kinds)}", kinds)
    else:
        yield note("bf16 is emulated on this CPU: slower than fp32", kinds, mend=check_bf16.mend)


@check(
    "cpu.governor",
    asks="the CPU runs at full clock",
    mend="sudo cpupower frequency-set --governor performance",
)
def check_governor(machine: Machine) -> Findings:
    """The governor of the clock, with the drivers where it matters."""
    governor = machine.read(f"{CPUS}/cpu0/cpufreq/scaling_governor")
    driver = machine.read(f"{CPUS}/cpu0/cpufreq/scaling_driver")
    if governor is None:
        return
    if governor == "powersave" and driver in SAVING_DRIVERS:
        yield warning(f"the governor is {governor} ({driver}): the lowest clock", governor)
    else:
        yield ok(f"governor {governor} ({driver})", governor)


@check(
    "cpu.threads",
    asks="OMP_NUM_THREADS is a number between 1 and the CPUs of this process",
    mend="unset OMP_NUM_THREADS, or set it to the CPUs of each process",
)
def check_threads(machine: Machine) -> Findings:
    """Threads of one process against its CPUs."""
    given = machine.env.get("OMP_NUM_THREADS")
    cpus = usable_cpus(machine)
    if given is None:
        yield ok(f"OMP_NUM_THREADS is not set; {cpus} CPU(s)", None)
    elif not re.fullmatch(r"\d+(,\d+)*", given) or int(given.split(",")[0]) < 1:
        yield problem(f"OMP_NUM_THREADS={given!r} is no number", given)
    elif int(given.split(",")[0]) > cpus:
        yield warning(
            f"OMP_NUM_THREADS={given} on {cpus} CPU(s): threads wait for each other", given
        )
    elif given == "1" and cpus >= 8 and "LOCAL_RANK" not in machine.env:
        mend = f"export OMP_NUM_THREADS={cpus} for one process"
        yield note(f"OMP_NUM_THREADS=1 leaves {cpus - 1} of {cpus} CPUs idle", given, mend=mend)
    else:
        yield ok(f"OMP_NUM_THREADS={given} on {cpus} CPU(s)", given)


@check(
    "cpu.numa",
    asks="a process and its memory lie on one NUMA node",
    mend="torchrun --numa-binding node, or numactl --cpunodebind=N --membind=N for each process",
)
def check_numa(machine: Machine) -> Findings:
    """How many nodes there are, and whether the kernel moves pages between them."""
    nodes = [name for name in machine.entries(NODES) if re.fullmatch(r"node\d+", name)]
    if len(nodes) < 2:
        yield ok("one NUMA node", len(nodes))
        return
    balancing = machine.read("/proc/sys/kernel/numa_balancing") == "1"
    moved = ", and the kernel moves pages between them" * balancing
    yield note(f"{len(nodes)} NUMA nodes{moved}", len(nodes), mend=check_numa.mend)


@check(
    "cpu.load",
    asks="nobody else uses the CPUs",
    mend="top shows who does: end it, or wait",
)
def check_load(machine: Machine) -> Findings:
    """Load of the last minute."""
    words = (machine.read("/proc/loadavg") or "").split()
    if not words:
        return
    load, cpus = float(words[0]), host_cpus(machine)
    if load > BUSY * cpus + 1:
        yield warning(f"load {load:g} on {cpus} CPU(s): others use the machine", load)
    else:
        yield ok(f"load {load:g} on {cpus} CPU(s)", load)


CHECKS = (
    check_count,
    check_throttled,
    check_bf16,
    check_governor,
    check_threads,
    check_numa,
    check_load,
)
