"""Parameters of the Linux kernel that matter for training over many processes and machines."""

import re
from dataclasses import dataclass

from deepseek.doctor.finding import Findings, check, note, ok, warning
from deepseek.doctor.graphics_cards import count_cards
from deepseek.doctor.job import read_job
from deepseek.doctor.machine import Machine


@dataclass(frozen=True)
class Parameter:
    """One parameter: its least value, and what goes wrong below it."""

    name: str
    least: int
    why: str
    is_for_many_hosts: bool = False


PARAMETERS = (
    Parameter("vm.max_map_count", 65530, "mappings of large models and many workers run out"),
    Parameter("kernel.pid_max", 32768, "process numbers run out"),
    Parameter("fs.file-max", 100_000, "open files of the whole machine run out"),
    Parameter("net.core.somaxconn", 1024, "ranks that connect at once are refused", True),
    Parameter("net.core.rmem_max", 4 * 2**20, "TCP does not fill a fast link", True),
    Parameter("net.core.wmem_max", 4 * 2**20, "TCP does not fill a fast link", True),
)


@check(
    "kernel.parameters",
    asks="kernel parameters are large enough",
    mend="sudo sysctl -w NAME=VALUE, and write it into /etc/sysctl.d/",
)
def check_parameters(machine: Machine) -> Findings:
    """Compare each with its least value."""
    has_peers = read_job(machine).num_hosts > 1
    is_fine = True
    for entry in PARAMETERS:
        number = machine.read_number("/proc/sys/" + entry.name.replace(".", "/"))
        if number is None or number >= entry.least or (entry.is_for_many_hosts and not has_peers):
            continue
        is_fine = False
        mend = f"sudo sysctl -w {entry.name}={entry.least}"
        yield warning(f"{entry.name}={number}: {entry.why}", {entry.name: number}, mend=mend)
    if is_fine:
        yield ok("kernel parameters are large enough", {})


@check(
    "kernel.iommu",
    asks="the IOMMU does not stand between cards that access each other",
    mend="boot with iommu=pt, and turn off ACS in the BIOS",
)
def check_iommu(machine: Machine) -> Findings:
    """An IOMMU that translates makes peer access slow, or hang."""
    if count_cards(machine) < 2:
        return
    line = machine.read("/proc/cmdline") or ""
    is_on = re.search(r"\b(intel|amd)_iommu=on\b", line) is not None
    if is_on and "iommu=pt" not in line:
        yield warning("the IOMMU translates: access between cards is slow or hangs", line)
    else:
        yield ok("the IOMMU is off or passes through", line)


@check(
    "kernel.tracing",
    asks="a hung process can be looked into (py-spy)",
    mend="sudo sysctl kernel.yama.ptrace_scope=0, or --cap-add=SYS_PTRACE",
)
def check_tracing(machine: Machine) -> Findings:
    """Whether one process may look into another of the same user."""
    scope = machine.read_number("/proc/sys/kernel/yama/ptrace_scope")
    if scope is not None and scope >= 1:
        mend = f"to look into a hung run: {check_tracing.mend}"
        yield note(f"kernel.yama.ptrace_scope={scope}: py-spy needs root", scope, mend=mend)


CHECKS = (check_parameters, check_iommu, check_tracing)
