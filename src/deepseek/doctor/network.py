"""Which interface NCCL and Gloo would take, and whether other machines reach it."""

from deepseek.doctor.finding import Findings, check, note, ok, problem, warning
from deepseek.doctor.interfaces import choice_of_nccl, read_interfaces
from deepseek.doctor.job import read_job
from deepseek.doctor.machine import Machine

SLOW_MBITS = 10_000


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches the address."""
    return address.startswith("127.") or address == "::1"


@check(
    "network.interface",
    asks="NCCL takes by itself the interface that leads to the other machines",
    mend="name it: NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME, the same on all machines",
)
def check_interface(machine: Machine) -> Findings:
    """The choice of NCCL, against the default route."""
    interfaces = read_interfaces(machine)
    wanted = machine.env.get("NCCL_SOCKET_IFNAME")
    chosen = choice_of_nccl(interfaces, wanted)
    names = [entry.name for entry in chosen]
    default = [entry.name for entry in interfaces if entry.is_default]
    value = {"nccl": names, "default_route": default}
    has_peers = read_job(machine).num_hosts > 1
    if not chosen or all(entry.is_local for entry in chosen):
        what = f"NCCL would take {', '.join(names) or 'no interface'}: no other machine reaches it"
        yield (problem if has_peers else note)(what, value)
        return
    mend = f"NCCL_SOCKET_IFNAME={default[0]}" if default else ""
    odd = [entry.name for entry in chosen if entry.is_local or entry.is_virtual]
    if odd and not wanted:
        what = f"NCCL would also try {', '.join(odd)}, a bridge that leads to no other machine"
        yield (warning if has_peers else note)(what, value, mend=mend)
    elif default and not set(default) & set(names) and not names[0].startswith("ib"):
        what = f"NCCL would take {', '.join(names)}; the default route is {', '.join(default)}"
        yield (warning if has_peers else note)(what, value, mend=mend)
    elif len(chosen) > 1 and not wanted:
        what = f"NCCL would take all of {', '.join(names)}"
        mend = mend or f"NCCL_SOCKET_IFNAME={names[0]}"
        yield note(what, value, mend=f"where they are different networks, {mend}")
    else:
        yield ok(f"NCCL takes {', '.join(names)}", value)


@check(
    "network.link",
    asks="the interface of the default route is up, and fast enough to train over",
    mend="look at cable and switch with ip link and ethtool; use InfiniBand or 100 Gbit/s Ethernet",
)
def check_link(machine: Machine) -> Findings:
    """Link and speed of the interfaces with a default route."""
    interfaces = read_interfaces(machine)
    default = [entry for entry in interfaces if entry.is_default]
    inner = [entry.name for entry in interfaces if entry.leads_elsewhere]
    if not default and inner:  # as on compute nodes that only reach the cluster
        yield note(
            f"no default route: this machine reaches only networks of {', '.join(inner)}", None
        )
    elif not default:
        found = problem if read_job(machine).num_hosts > 1 else note
        yield found("there is no default route: this machine is alone", None)
    for entry in default:
        speed = entry.speed_mbits
        value = {"name": entry.name, "speed_mbits": speed, "mtu": entry.mtu}
        shown = f"{speed / 1000:g} Gbit/s" if speed else "speed unknown"
        if not entry.is_up:
            yield problem(f"{entry.name} is down, and the default route leads over it", value)
        elif speed and speed < SLOW_MBITS and read_job(machine).num_hosts > 1:
            yield warning(f"{entry.name}: {shown} is slow for training over machines", value)
        else:
            yield ok(f"{entry.name} is up, {shown}, MTU {entry.mtu}", value)


@check(
    "network.mtu",
    asks="the interfaces that NCCL takes have one size of packet (MTU)",
    mend="set one MTU on all machines and switches, or choose interfaces of one with"
    " NCCL_SOCKET_IFNAME",
)
def check_mtu(machine: Machine) -> Findings:
    """Packets that are too large for the other side are lost, and the run hangs."""
    interfaces = read_interfaces(machine)
    chosen = choice_of_nccl(interfaces, machine.env.get("NCCL_SOCKET_IFNAME"))
    sizes = {entry.name: entry.mtu for entry in chosen if entry.mtu and not entry.is_local}
    shown = ", ".join(f"{name} {mtu}" for name, mtu in sizes.items())
    if len(set(sizes.values())) > 1:
        yield warning(f"different MTU: {shown}", sizes)
    elif sizes:
        yield ok(f"MTU {shown}", sizes)


@check(
    "network.hostname",
    asks="the host name resolves to an address that other machines reach",
    mend="in /etc/hosts give the host name its network address; or set GLOO_SOCKET_IFNAME, and give"
    " torchrun --local-addr",
)
def check_hostname(machine: Machine) -> Findings:
    """Gloo listens where the host name points: 127.0.1.1 is reached by nobody else."""
    name = machine.hostname
    addresses = machine.resolve(name)
    has_peers = read_job(machine).num_hosts > 1
    is_named = "GLOO_SOCKET_IFNAME" in machine.env
    value = {"hostname": name, "addresses": addresses}
    if addresses is None:
        yield warning(f"no name server answers for the host name {name}", value)
    elif not addresses:
        what = f"the host name {name} does not resolve: Gloo listens on the loopback only"
        yield (problem if has_peers and not is_named else note)(what, value)
    elif is_loopback(addresses[0]) and not is_named:
        what = f"the host name {name} resolves to {addresses[0]}: Gloo is reached by nobody else"
        yield (problem if has_peers else note)(
            what, value, mend="" if has_peers else f"for several machines: {check_hostname.mend}"
        )
    else:
        yield ok(f"the host name {name} resolves to {addresses[0]}", value)


@check(
    "network.firewall",
    asks="no firewall stands between machines that train together",
    mend="let all TCP ports pass between the machines of a job: NCCL and Gloo take any",
)
def check_firewall(machine: Machine) -> Findings:
    """Whether ufw or firewalld run here, or a pod may be cut off by a network policy."""
    active = []
    if "ENABLED=yes" in (machine.read("/etc/ufw/ufw.conf") or ""):
        active.append("ufw")
    if machine.exists("/run/firewalld") or machine.exists("/var/run/firewalld.pid"):
        active.append("firewalld")
    if active:
        found = warning if read_job(machine).num_hosts > 1 else note
        mend = "sudo ufw allow from NETWORK, that of the job" if "ufw" in active else ""
        yield found(f"{' and '.join(active)} is active", active, mend=mend)
    else:
        yield ok("no ufw or firewalld is active here", active)


CHECKS = (check_interface, check_link, check_mtu, check_hostname, check_firewall)
