"""Each variable that is set, explained; and those that nothing reads."""

import fnmatch

from deepseek.doctor import nccl_variables, torch_variables
from deepseek.doctor.finding import Finding, Findings, Verdict, check, note, ok, problem, warning
from deepseek.doctor.interfaces import Interface, filter_interfaces, read_interfaces
from deepseek.doctor.job import read_job
from deepseek.doctor.machine import Machine
from deepseek.doctor.rdma import active_ports
from deepseek.doctor.torch_report import ask_torch
from deepseek.doctor.variables import Variable
from deepseek.registry import nearest

VARIABLES = {entry.name: entry for entry in (*nccl_variables.VARIABLES, *torch_variables.VARIABLES)}
PREFIXES = ("NCCL_", *torch_variables.PREFIXES)
OPEN_PREFIXES = ("UCX_", "FI_")
"""Libraries with hundreds of settings: one that is not in the table is not called misspelt."""
INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
LABELS = {"NCCL_VERSION"}
"""Of NVIDIA's images, about themselves: nothing reads them, and nobody set them."""
SHOWN_LENGTH = 60


def variables_set(machine: Machine) -> dict[str, str]:
    """Return the variables of communication libraries that are set, by name."""
    return {
        name: value
        for name, value in sorted(machine.env.items())
        if name in VARIABLES or (name.startswith(PREFIXES) and name not in LABELS)
    }


@check(
    "nccl.version",
    asks="torch brings NCCL where there are cards to connect",
    mend="install a torch wheel for CUDA, on Linux",
)
def check_nccl(machine: Machine) -> Findings:
    """Which NCCL torch was built with."""
    report = ask_torch(machine)
    version = report.facts.get("nccl")
    if version:
        yield ok(f"NCCL {version}", version)
    elif report.cuda:
        yield warning("this torch is built for CUDA and without NCCL: Gloo only", None)


@check(
    "variables.set",
    asks="no variable of NCCL, torch, Gloo, UCX or libfabric has a value that slows or breaks",
    mend="unset the variable, also in /etc/nccl.conf, job scripts and images",
)
def check_variables(machine: Machine) -> Findings:
    """Explain each variable that is set, and judge its value."""
    found = variables_set(machine)
    for name, value in found.items():
        entry = VARIABLES.get(name)
        if entry is not None and name not in INTERFACE_VARIABLES:
            yield _judge(machine, entry, value)
    if not found:
        yield ok("no variable of NCCL, torch, Gloo, UCX or libfabric is set", [])


@check(
    "variables.unknown",
    asks="no variable is misspelt: nothing reads it, and nothing says so",
    mend="correct its name, or unset it",
)
def check_unknown(machine: Machine) -> Findings:
    """Names like those that we know, and not among them."""
    for name, value in variables_set(machine).items():
        if name in VARIABLES or name.startswith(OPEN_PREFIXES):
            continue
        near = nearest(name, VARIABLES, count=1)
        shown = {"name": name, "value": value[:SHOWN_LENGTH]}
        if near and _is_close(name, near[0]):
            yield problem(f"{name} is unknown", shown, mend=f"did you mean {near[0]}?")
        elif name.startswith(nccl_variables.INTERNAL_PREFIXES):
            yield note(f"{name}={value[:SHOWN_LENGTH]} is not in our table of variables", shown)
        else:
            what = f"{name} is unknown: it probably has no effect"
            yield warning(what, shown, mend=f"did you mean {near[0]}?" if near else "")


@check(
    "variables.interface",
    asks="NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name interfaces that other machines reach",
    mend="name the interface of the default route, such as NCCL_SOCKET_IFNAME=eth0",
)
def check_interface_variables(machine: Machine) -> Findings:
    """An interface that is missing, down, or of this machine alone."""
    interfaces = read_interfaces(machine)
    for name in INTERFACE_VARIABLES:
        value = machine.env.get(name)
        if value is not None:
            yield _judge_interface(machine, name, value, interfaces)


def _judge_interface(
    machine: Machine, name: str, value: str, interfaces: list[Interface]
) -> Finding:
    # Only NCCL filters by prefix; Gloo and TensorPipe want names.
    if name == "NCCL_SOCKET_IFNAME":
        chosen = filter_interfaces(interfaces, value)
    else:
        chosen = [entry for entry in interfaces if entry.name in value.split(",")]
    names = [entry.name for entry in chosen]
    shown = {"name": name, "value": value, "interfaces": names}
    if not chosen:
        there = ", ".join(entry.name for entry in interfaces) or "none"
        return problem(f"{name}={value} fits no interface of this machine: {there}", shown)
    down = [entry.name for entry in chosen if not entry.is_up]
    if len(down) == len(chosen):
        return problem(f"{name}={value}: {', '.join(down)} is down", shown)
    local = [entry for entry in chosen if entry.is_local]
    if len(local) == len(chosen):
        verdict = problem if read_job(machine).num_hosts > 1 else warning
        return verdict(f"{name}={value}: other machines do not reach {', '.join(names)}", shown)
    return ok(f"{name}={value}: {', '.join(names)}", shown)


def _judge(machine: Machine, entry: Variable, value: str) -> Finding:
    shown = {"name": entry.name, "value": value}
    said = f"{entry.name}={value[:SHOWN_LENGTH]}: {entry.what} (default {entry.default})"
    if entry.name == "NCCL_IB_DISABLE" and value == "1":
        ports = active_ports(machine)
        if not ports:
            return note(said, shown)
        why = f"{len(ports)} RDMA port(s) are up and not used"
        return warning(f"{said}; {why}", shown, mend="unset NCCL_IB_DISABLE")
    if entry.name == "NCCL_IB_HCA":
        return _judge_devices(machine, value, said, shown)
    suspicion = entry.suspicion(value)
    if suspicion is None:
        return note(said, shown)
    verdict, why = suspicion
    make = problem if verdict is Verdict.PROBLEM else warning
    return make(f"{said}; {why}", shown, mend=entry.mend or f"unset {entry.name}")


def _judge_devices(machine: Machine, value: str, said: str, shown: dict[str, str]) -> Finding:
    there = machine.entries("/sys/class/infiniband")
    is_exact = value.lstrip("^").startswith("=")
    words = [word.partition(":")[0] for word in value.lstrip("^=").split(",") if word]
    fits = [
        name
        for name in there
        if any(fnmatch.fnmatchcase(name, word if is_exact else f"{word}*") for word in words)
    ]
    if value.startswith("^") or fits:
        return note(said, shown)
    listed = ", ".join(there) or "none"
    return problem(f"{said}; fits no device here: {listed}", shown, mend="unset NCCL_IB_HCA")


def _is_close(name: str, known: str) -> bool:
    # One or two letters lost, doubled or swapped; not merely a variable of the same family.
    longer, shorter = sorted((name, known), key=len, reverse=True)
    if len(longer) - len(shorter) > 2:
        return False
    if sorted(longer) == sorted(shorter):
        return True
    common = sum(min(longer.count(letter), shorter.count(letter)) for letter in set(longer))
    return len(longer) - common <= 2


CHECKS = (check_nccl, check_variables, check_unknown, check_interface_variables)
