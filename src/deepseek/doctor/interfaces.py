"""The network interfaces of a machine, and which of them NCCL and Gloo would take."""

from dataclasses import dataclass

from deepseek.doctor.machine import Machine

NET = "/sys/class/net"
LOCAL_PREFIXES = ("lo", "docker", "virbr", "br-", "veth", "cni", "podman", "lxc", "lxdbr")
POD_PREFIXES = ("cali", "flannel", "cilium", "kube-", "tunl", "vxlan", "dummy", "ifb")
NCCL_LAST = ("docker", "lo", "virbr")
"""NCCL takes these only where there is nothing else (its `ncclFindInterfaces`)."""
IFF_UP = 0x1
LINK_SCOPE = "20"
"""Of an IPv6 address that every interface makes up by itself (fe80::)."""


@dataclass(frozen=True)
class Interface:
    """One network interface.

    Attributes:
        name: such as `eth0`.
        is_up: it is configured up and its link is not known to be down.
        mtu: largest packet, bytes; 0 where unknown.
        speed_mbits: of its link; `None` where unknown, as in virtual machines.
        is_default: a default route leads over it.
        has_address: a route or the IPv6 table mentions it.
        has_network: a route leads over it, or its IPv6 address is of more than its link.
    """

    name: str
    is_up: bool
    mtu: int
    speed_mbits: int | None
    is_default: bool
    has_address: bool
    has_network: bool

    @property
    def is_local(self) -> bool:
        """Only this machine reaches it: loopback and bridges of containers."""
        return self.name.startswith(LOCAL_PREFIXES)

    @property
    def is_virtual(self) -> bool:
        """A pod network's own device: NCCL does not know that it leads nowhere."""
        return self.name.startswith(POD_PREFIXES)

    @property
    def leads_elsewhere(self) -> bool:
        """Other machines can be reached over it."""
        return self.is_up and self.has_network and not (self.is_local or self.is_virtual)


def read_interfaces(machine: Machine) -> list[Interface]:
    """Return the interfaces, those of default routes first."""
    routes = _routes(machine)
    ipv6 = [
        line.split() for line in (machine.read("/proc/net/if_inet6") or "").splitlines() if line
    ]
    with_ipv6 = {words[-1] for words in ipv6}
    with_network = {*routes, *(words[-1] for words in ipv6 if words[3] != LINK_SCOPE)}
    found = []
    for name in machine.entries(NET):
        text = machine.read(f"{NET}/{name}/flags")
        if text is None:
            continue  # `bonding_masters` lies there too
        flags = int(text, 16)
        state = machine.read(f"{NET}/{name}/operstate")
        speed = machine.read_number(f"{NET}/{name}/speed")
        found.append(
            Interface(
                name=name,
                is_up=bool(flags & IFF_UP) and state not in ("down", "lowerlayerdown"),
                mtu=machine.read_number(f"{NET}/{name}/mtu") or 0,
                speed_mbits=speed if speed and speed > 0 else None,
                is_default=routes.get(name, False),
                has_address=name == "lo" or name in routes or name in with_ipv6,
                has_network=name in with_network,
            )
        )
    return sorted(found, key=lambda entry: not entry.is_default)


def _routes(machine: Machine) -> dict[str, bool]:
    """Return of each interface in the IPv4 routes whether a default route is among them."""
    routes: dict[str, bool] = {}
    for line in (machine.read("/proc/net/route") or "").splitlines()[1:]:
        words = line.split()
        if len(words) > 7:
            is_default = words[1] == words[7] == "00000000"
            routes[words[0]] = routes.get(words[0], False) or is_default
    return routes


def filter_interfaces(interfaces: list[Interface], wanted: str) -> list[Interface]:
    """Return what NCCL_SOCKET_IFNAME leaves: prefixes, `=` for names, `^` for all others."""
    is_excluding = wanted.startswith("^")
    rest = wanted.removeprefix("^")
    is_exact = rest.startswith("=")
    words = [word for word in rest.removeprefix("=").split(",") if word]

    def fits(name: str) -> bool:
        return any(name == word if is_exact else name.startswith(word) for word in words)

    return [entry for entry in interfaces if fits(entry.name) != is_excluding]


def choice_of_nccl(interfaces: list[Interface], wanted: str | None) -> list[Interface]:
    """Return the interfaces that NCCL would use, in its order."""
    usable = [entry for entry in interfaces if entry.is_up and entry.has_address]
    if wanted:
        return filter_interfaces(usable, wanted)
    groups = [
        [entry for entry in usable if entry.name.startswith("ib")],
        [entry for entry in usable if not entry.name.startswith(NCCL_LAST)],
        *([entry for entry in usable if entry.name.startswith(last)] for last in NCCL_LAST),
    ]
    return next((group for group in groups if group), [])
