"""What the link between the ranks should give, where that is known."""

import re
from dataclasses import dataclass

from deepseek.doctor.gpu_topology import nvlinks_between
from deepseek.doctor.graphics_cards import PCI, pci_cards
from deepseek.doctor.interfaces import choice_of_nccl, read_interfaces
from deepseek.doctor.machine import Machine
from deepseek.doctor.nvidia_smi import query_topology
from deepseek.doctor.rdma import active_ports

NVLINK_GBS = 25.0
"""One NVLink 2 to 4 in one direction (V100, A100, H100)."""
NVLINK_5_GBS = 50.0
"""One NVLink of Blackwell."""
BLACKWELL = re.compile(r"\bG?B[123]00\b")
PCIE_EFFICIENCY = 0.8
LOW_SHARE = 0.5
"""Large messages come near to the link; below half of it something is wrong."""


@dataclass(frozen=True)
class LinkSpeed:
    """What a link carries in one direction, GB/s, and what it is."""

    gbs: float
    name: str


def expected_speed(
    machine: Machine, *, backend: str, num_hosts: int, device: str
) -> LinkSpeed | None:
    """Return the speed of the link between ranks; `None` where nobody knows."""
    if num_hosts > 1:
        return _network_speed(machine, backend)
    if backend != "nccl":
        return None  # memory of one machine: no link
    topology = query_topology(machine)
    links = nvlinks_between(topology) if topology is not None else 0
    if links:
        each = NVLINK_5_GBS if BLACKWELL.search(device) else NVLINK_GBS
        return LinkSpeed(links * each, f"{links} NVLinks")
    return _pcie_speed(machine)


def _network_speed(machine: Machine, backend: str) -> LinkSpeed | None:
    ports = active_ports(machine)
    if backend == "nccl" and ports and machine.env.get("NCCL_IB_DISABLE") != "1":
        rate = sum(port.rate_gbits for port in ports)
        return LinkSpeed(rate / 8, f"{len(ports)} RDMA port(s)") if rate else None
    chosen = choice_of_nccl(read_interfaces(machine), machine.env.get("NCCL_SOCKET_IFNAME"))
    fastest = max(chosen, key=lambda entry: entry.speed_mbits or 0, default=None)
    if fastest is None or fastest.speed_mbits is None:
        return None
    return LinkSpeed(fastest.speed_mbits / 8000, f"{fastest.name}")


def _pcie_speed(machine: Machine) -> LinkSpeed | None:
    speeds = []
    for address in pci_cards(machine):
        # max: an idle card lowers its current speed
        rate = re.match(r"[\d.]+", machine.read(f"{PCI}/{address}/max_link_speed") or "")
        width = machine.read_number(f"{PCI}/{address}/current_link_width")
        if rate and width:
            speeds.append(float(rate[0]) * width / 8 * PCIE_EFFICIENCY)
    return LinkSpeed(min(speeds), "PCIe") if speeds else None


def judge_speed(peak_gbs: float, link: LinkSpeed | None, *, largest_bytes: int) -> str | None:
    """Return a sentence where an all-reduce stays far below its link.

    Args:
        peak_gbs: best bus bandwidth, GB/s.
        link: what it should be.
        largest_bytes: small messages never fill a link, so nothing is said of them.
    """
    if link is None or peak_gbs >= LOW_SHARE * link.gbs or largest_bytes < 16 * 2**20:
        return None
    return (
        f"all-reduce reaches {peak_gbs:.3g} GB/s of the {link.gbs:.3g} GB/s of {link.name}"
        f" ({peak_gbs / link.gbs:.0%}): look at deepseek doctor, and at NCCL_DEBUG=INFO for the"
        " transport taken"
    )
