"""InfiniBand and RoCE: the devices, their ports, and what they need of the system."""

import re
from dataclasses import dataclass

from deepseek.doctor.finding import Findings, check, note, ok, problem, warning
from deepseek.doctor.graphics_cards import count_cards
from deepseek.doctor.machine import Machine
from deepseek.doctor.process_limits import read_limit

INFINIBAND = "/sys/class/infiniband"


@dataclass(frozen=True)
class Port:
    """One port of an RDMA device.

    Attributes:
        name: device and number, `mlx5_0:1`.
        state: `ACTIVE`, `DOWN`, `INIT` and so on.
        link: `InfiniBand` or `Ethernet` (RoCE).
        rate_gbits: 0 where unknown.
    """

    name: str
    state: str
    link: str
    rate_gbits: float

    @property
    def is_active(self) -> bool:
        """Traffic can pass."""
        return self.state == "ACTIVE"


def read_ports(machine: Machine) -> list[Port]:
    """Return the ports of all devices."""
    ports = []
    for device in machine.entries(INFINIBAND):
        for number in machine.entries(f"{INFINIBAND}/{device}/ports"):
            folder = f"{INFINIBAND}/{device}/ports/{number}"
            state = (machine.read(f"{folder}/state") or "?").rpartition(":")[2].strip()
            link = machine.read(f"{folder}/link_layer") or "InfiniBand"
            rate = re.match(r"[\d.]+", machine.read(f"{folder}/rate") or "")
            ports.append(Port(f"{device}:{number}", state, link, float(rate[0]) if rate else 0.0))
    return ports


def active_ports(machine: Machine) -> list[Port]:
    """Return the ports that traffic can pass."""
    return [port for port in read_ports(machine) if port.is_active]


@check(
    "rdma.ports",
    asks="the ports of InfiniBand and RoCE devices are up",
    mend="look at cable, switch and subnet manager with ibstat, or leave it out by NCCL_IB_HCA",
)
def check_ports(machine: Machine) -> Findings:
    """State of each port; a machine without any is fine."""
    ports = read_ports(machine)
    if not ports:
        yield ok("no InfiniBand or RoCE device: TCP is used between machines", [])
        return
    active = [port for port in ports if port.is_active]
    value = [vars(port) for port in ports]
    if not active:
        states = ", ".join(f"{port.name} {port.state}" for port in ports)
        yield problem(f"no RDMA port is up: {states}", value)
        return
    rate = sum(port.rate_gbits for port in active)
    yield ok(f"{len(active)} of {len(ports)} RDMA port(s) up, {rate:g} Gbit/s together", value)
    for port in ports:
        if port.state == "INIT":
            mend = "start a subnet manager (opensm) on the switch or on one machine"
            yield warning(f"{port.name} waits for a subnet manager", vars(port), mend=mend)
    rates = {port.rate_gbits for port in active}
    if len(rates) > 1:
        listed = ", ".join(f"{port.name} {port.rate_gbits:g}" for port in active)
        mend = "choose those of one rate with NCCL_IB_HCA"
        yield note(f"ports of different rates (Gbit/s): {listed}", sorted(rates), mend=mend)


@check(
    "rdma.devices",
    asks="this process may open the RDMA devices",
    mend="start the container with --device=/dev/infiniband, or use the RDMA device plug-in",
)
def check_device_files(machine: Machine) -> Findings:
    """A container sees the host's devices in `/sys` and cannot open them without `/dev`."""
    if not read_ports(machine):
        return
    files = [n for n in machine.entries("/dev/infiniband") if n.startswith("uverbs")]
    if files:
        yield ok(f"{len(files)} device file(s) in /dev/infiniband", files)
    else:
        yield problem("/dev/infiniband has no uverbs device: NCCL falls back to TCP", files)


@check(
    "rdma.memlock",
    asks="RDMA may lock as much memory as it wants",
    mend="raise it: ulimit -l unlimited, limits.conf (memlock), LimitMEMLOCK=infinity,"
    " --ulimit memlock=-1",
)
def check_memlock(machine: Machine) -> Findings:
    """The limit of locked memory: RDMA registers all its buffers."""
    limit = read_limit(machine, "Max locked memory")
    if limit is None:
        return
    soft = limit.soft
    if not read_ports(machine):
        yield ok("no RDMA device: locked memory is not needed", soft)
    elif soft is None:
        yield ok("locked memory is unlimited", None)
    else:
        yield problem(f"locked memory is limited to {soft / 2**20:.3g} MiB", soft)


@check(
    "rdma.gpudirect",
    asks="network cards read and write the GPUs' memory themselves (GPUDirect RDMA)",
    mend="sudo modprobe nvidia-peermem, or the open driver with DMA-BUF on kernel 5.12 or newer",
)
def check_gpudirect(machine: Machine) -> Findings:
    """Whether the module is loaded that lets them."""
    if not read_ports(machine) or not count_cards(machine):
        return
    if any(map(machine.exists, ("/sys/module/nvidia_peermem", "/sys/module/nv_peer_mem"))):
        yield ok("nvidia-peermem is loaded", True)
    else:
        mend = "look for GDRDMA in NCCL_DEBUG=INFO; if it is missing, sudo modprobe nvidia-peermem"
        yield note("nvidia-peermem is not loaded: only DMA-BUF is left", False, mend=mend)


CHECKS = (check_ports, check_device_files, check_memlock, check_gpudirect)
