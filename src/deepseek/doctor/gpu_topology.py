"""How the cards are connected with each other and with the network, and what that means."""

from collections import Counter

from deepseek.doctor.finding import Findings, check, note, ok, warning
from deepseek.doctor.machine import Machine
from deepseek.doctor.nvidia_smi import Topology, query_topology

KINDS = {
    "NV": "NVLink, the fastest",
    "C2C": "chip to chip, as fast as NVLink",
    "PIX": "one PCIe switch",
    "PXB": "several PCIe switches",
    "PHB": "the PCIe bridge of one CPU",
    "NODE": "several PCIe bridges of one NUMA node",
    "SYS": "the link between CPU sockets, the slowest",
}
"""What `nvidia-smi topo -m` means, fastest first."""


def kind_of(link: str) -> str:
    """Return the kind of a cell of the matrix: `NV18` is `NV`."""
    return "NV" if link.startswith("NV") else link


def nvlinks_between(topology: Topology) -> int:
    """Return how many NVLinks the worst pair of cards has; 0 where one has none."""
    counts = [int(link[2:]) if link.startswith("NV") else 0 for link in topology.links.values()]
    return min(counts, default=0)


@check(
    "nvidia.topology",
    asks="the cards that train together are connected without the link between CPU sockets",
    mend="choose cards of one NUMA node with CUDA_VISIBLE_DEVICES; tensor parallel by NVLink",
)
def check_topology(machine: Machine) -> Findings:
    """NVLink, PCIe or the link between the sockets."""
    topology = query_topology(machine)
    if topology is None or len(topology.gpus) < 2:
        return
    counts = Counter(kind_of(link) for link in topology.links.values())
    total = sum(counts.values())
    shown = "; ".join(
        f"{counts[kind] // 2 or 1} pair(s) {kind} ({meaning})"
        for kind, meaning in KINDS.items()
        if counts[kind]
    )
    value = {f"{one}-{two}": link for (one, two), link in topology.links.items() if one < two}
    if counts["NV"] + counts["C2C"] == total:
        links = nvlinks_between(topology)
        yield ok(f"{len(topology.gpus)} cards, all over NVLink ({links} per pair at least)", value)
    elif counts["SYS"]:
        yield warning(f"{len(topology.gpus)} cards: {shown}", value)
    else:
        yield note(f"{len(topology.gpus)} cards: {shown}", value)


@check(
    "nvidia.network_distance",
    asks="every card has a network card behind the same PCIe switch (GPUDirect RDMA)",
    mend="put the network cards beside the GPUs, and turn off ACS in the BIOS",
)
def check_network_distance(machine: Machine) -> Findings:
    """GPUDirect RDMA wants PIX or PXB between card and network card."""
    topology = query_topology(machine)
    if topology is None or not topology.nics:
        return
    far = [
        gpu
        for index, gpu in enumerate(topology.gpus)
        if not any(kinds[index] in ("PIX", "PXB", "C2C") for kinds in topology.nics.values())
    ]
    if far:
        what = f"{', '.join(far)}: the nearest network card is behind a CPU"
        yield note(what, far, mend="traffic between machines goes through host memory: slower")
    else:
        yield ok("every card has a network card behind its PCIe switch", far)


CHECKS = (check_topology, check_network_distance)
