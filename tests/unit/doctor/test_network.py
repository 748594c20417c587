import pytest

from deepseek.doctor.interfaces import choice_of_nccl, filter_interfaces, read_interfaces

NET = "/sys/class/net"
HEAD = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
DEFAULT = HEAD + "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n"
SUBNET = HEAD + "ib0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n"
GLOBAL_IPV6 = {"/proc/net/if_inet6": "fd00 02 40 00 80 eth0"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
HOSTS = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}


def link(name, *, flags="0x1003", state="up", mtu=1500, speed=100_000):
    folder = f"{NET}/{name}"
    return {
        f"{folder}/flags": flags,
        f"{folder}/operstate": state,
        f"{folder}/mtu": str(mtu),
        f"{folder}/speed": str(speed),
    }


def net(*links, route=DEFAULT, ipv6=()):
    files = {"/proc/net/route": route}
    for entry in links:
        files |= entry
    names = [name.split("/")[4] for entry in links for name in list(entry)[:1]]
    lines = [f"fe80 02 40 20 80 {name}" for name in (*names, *ipv6)]
    return files | {"/proc/net/if_inet6": "\n".join(lines)}


ETH, LO, DOCKER = link("eth0"), link("lo", flags="0x9", state="unknown"), link("docker0")


@pytest.mark.parametrize(
    ("links", "env", "verdict", "words"),
    [
        ((ETH, LO, DOCKER), {}, "ok", "NCCL takes eth0"),
        ((LO,), {}, "note", "no other machine"),
        ((LO, DOCKER), HOSTS, "problem", "NCCL would take docker0"),
        ((ETH, LO, link("cni0")), HOSTS, "warning", "NCCL_SOCKET_IFNAME=eth0"),
        ((ETH, LO, link("veth12ab")), {}, "note", "veth12ab"),
        ((ETH, link("eth1")), {}, "note", "all of eth0, eth1"),
        ((ETH, link("eth1")), {"NCCL_SOCKET_IFNAME": "eth1", **HOSTS}, "warning", "default route"),
        ((ETH, link("ib0")), HOSTS, "ok", "NCCL takes ib0"),
    ],
)
def test_verdict_on_the_interface_that_nccl_takes(expect, links, env, verdict, words):
    expect("network.interface", {"files": net(*links), "env": env}, verdict, words)


@pytest.mark.parametrize(
    ("files", "env", "verdict", "words"),
    [
        (net(ETH), {}, "ok", "eth0 is up, 100 Gbit/s, MTU 1500"),
        (net(link("eth0", state="down")), {}, "problem", "eth0 is down"),
        (net(link("eth0", speed=1000)), HOSTS, "warning", "1 Gbit/s is slow"),
        (net(link("eth0", speed=1000)), {}, "ok", "1 Gbit/s"),
        (net(ETH, route=HEAD), {}, "note", "no default route"),
        (net(ETH, route=HEAD), HOSTS, "problem", "no default route"),
        (net(link("ib0"), LO, route=SUBNET), SLURM, "note", "only networks of ib0"),
        (net(link("ib0", state="down"), route=SUBNET), SLURM, "problem", "no default route"),
        (net(DOCKER, route=SUBNET.replace("ib0", "docker0")), SLURM, "problem", "is alone"),
        (net(ETH, route=HEAD) | GLOBAL_IPV6, HOSTS, "note", "only networks of eth0"),
    ],
)
def test_verdict_on_the_link_of_the_default_route(expect, files, env, verdict, words):
    expect("network.link", {"files": files, "env": env}, verdict, words)


@pytest.mark.parametrize(
    ("links", "verdict", "words"),
    [
        ((ETH, link("eth1")), "ok", "MTU eth0 1500, eth1 1500"),
        ((ETH, link("eth1", mtu=9000)), "warning", "different MTU: eth0 1500, eth1 9000"),
    ],
)
def test_interfaces_that_train_together_have_one_mtu(expect, links, verdict, words):
    expect("network.mtu", {"files": net(*links)}, verdict, words)


@pytest.mark.parametrize(
    ("addresses", "env", "verdict", "words"),
    [
        (["10.0.0.5"], {}, "ok", "10.0.0.5"),
        (["127.0.1.1"], {}, "note", "resolves to 127.0.1.1"),
        (["127.0.1.1"], HOSTS, "problem", "/etc/hosts"),
        (["127.0.1.1"], {**HOSTS, "GLOO_SOCKET_IFNAME": "eth0"}, "ok", "127.0.1.1"),
        ([], HOSTS, "problem", "does not resolve"),
        (None, {}, "warning", "no name server answers"),
    ],
)
def test_host_name_must_lead_to_an_address_that_others_reach(
    expect, addresses, env, verdict, words
):
    expect("network.hostname", {"names": {"node1": addresses}, "env": env}, verdict, words)


@pytest.mark.parametrize(
    ("files", "env", "verdict", "words"),
    [
        ({}, {}, "ok", "no ufw"),
        ({"/etc/ufw/ufw.conf": "ENABLED=yes"}, {}, "note", "ufw is active"),
        ({"/run/firewalld/x": ""}, HOSTS, "warning", "firewalld is active"),
    ],
)
def test_firewall_is_told(expect, files, env, verdict, words):
    expect("network.firewall", {"files": files, "env": env}, verdict, words)


def test_nccl_takes_infiniband_first_and_docker_only_for_want_of_others(describe):
    def choice(*links):
        interfaces = read_interfaces(describe(files=net(*links)))
        return [entry.name for entry in choice_of_nccl(interfaces, None)]

    assert choice(ETH, LO, DOCKER, link("ib0")) == ["ib0"]
    read_interfaces(describe())


def test_filter_of_interfaces_is_that_of_nccl(describe):
    machine = describe(files=net(ETH, link("eth1"), LO, DOCKER))
    found = read_interfaces(machine)

    def names(wanted):
        return sorted(entry.name for entry in filter_interfaces(found, wanted))

    assert names("eth") == ["eth0", "eth1"]
    assert names("=eth1") == ["eth1"]
    assert names("^docker,lo") == ["eth0", "eth1"]
    assert names("^=eth0") == ["docker0", "eth1", "lo"]
