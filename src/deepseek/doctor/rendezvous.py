"""Where the processes of a job meet: MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE."""

from deepseek.doctor.finding import Finding, Findings, check, note, ok, problem, warning
from deepseek.doctor.job import master_of, number, read_job
from deepseek.doctor.machine import Machine
from deepseek.doctor.network import is_loopback

PORT_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
RESERVED = "/proc/sys/net/ipv4/ip_local_reserved_ports"


@check(
    "rendezvous.ranks",
    asks="RANK, WORLD_SIZE and LOCAL_RANK are set together and agree",
    mend="let torchrun (or deepseek launch) set them, or unset them all",
)
def check_ranks(machine: Machine) -> Findings:
    """The variables that torchrun sets."""
    env = machine.env
    given = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in env]
    rank, world_size = number(env.get("RANK")), number(env.get("WORLD_SIZE"))
    local = number(env.get("LOCAL_RANK"))
    shown = {name: env[name] for name in given}
    if not given:
        yield ok("not started by torchrun", shown)
    elif "RANK" not in given or "WORLD_SIZE" not in given:
        yield problem(f"only {' and '.join(given)} set, of RANK and WORLD_SIZE", shown)
    elif rank is None or world_size is None or (local is None and "LOCAL_RANK" in given):
        yield problem(f"no numbers: {shown}", shown)
    elif rank >= world_size or (local or 0) > rank:
        yield problem(f"RANK={rank} does not fit: {shown}", shown)
    elif world_size > 1 and not master_of(machine)[0]:
        yield problem(f"WORLD_SIZE={world_size}, and no MASTER_ADDR to meet at", shown)
    else:
        yield ok(f"rank {rank} of {world_size}", shown)


@check(
    "rendezvous.master",
    asks="MASTER_ADDR resolves, and is reached from here",
    mend="give the name or address of the first machine, the same on all machines",
)
def check_master(machine: Machine) -> Findings:
    """Resolve the address; then listen there if it is ours, else connect."""
    host, port = master_of(machine)
    job = read_job(machine)
    if not host:
        if job.num_hosts > 1:
            yield note(
                f"{job.num_hosts} machines, and no MASTER_ADDR is set yet",
                mend="torchrun takes --rdzv-endpoint=HOST:29400",
            )
        return
    addresses = machine.resolve(host)
    value = {"host": host, "port": port, "addresses": addresses}
    if addresses is None:
        yield problem(f"no name server answers for MASTER_ADDR={host}", value)
    elif not addresses:
        mend = _mend_of_name(machine, host)
        yield problem(f"MASTER_ADDR={host} does not resolve", value, mend=mend)
    elif is_loopback(addresses[0]) and job.num_hosts > 1:
        what = f"MASTER_ADDR={host} is {addresses[0]}: each machine would meet itself alone"
        yield problem(what, value)
    elif not port:
        yield note(f"MASTER_ADDR={host} is {addresses[0]}; no MASTER_PORT is set", value)
    else:
        yield _reach(machine, host, port, addresses)


def _mend_of_name(machine: Machine, host: str) -> str:
    if machine.inside() != "kubernetes":
        return ""
    service = host.split(".")[1] if host.count(".") else "SERVICE"
    return (
        f"make the headless service {service}: clusterIP: None, publishNotReadyAddresses: true,"
        " and subdomain: of the pods the same name"
    )


def _reach(machine: Machine, host: str, port: int, addresses: list[str]) -> Finding:
    value = {"host": host, "port": port, "addresses": addresses}
    where = f"{host}:{port}"
    own = machine.resolve(machine.hostname) or []
    is_own = (
        is_loopback(addresses[0]) or host == machine.hostname or bool(set(own) & set(addresses))
    )
    if is_own:
        if machine.listen(port):
            return ok(f"{where} is this machine, and the port is free", value)
        if "RANK" in machine.env:
            return ok(f"{where} is this machine, and the job listens there", value)
        what = f"port {port} is in use on this machine, where the job wants to meet"
        return problem(what, value, mend="choose another MASTER_PORT, or end the process: ss -ltnp")
    result = machine.connect(addresses[0], port)
    if result == "open":
        return ok(f"{where} is reached", value)
    if result == "refused":
        mend = "fine before the job starts; in a job, look at the log of rank 0"
        return note(f"{host} is reached; nobody listens at {port} yet", value, mend=mend)
    if result == "timeout":
        mend = f"a firewall or network policy drops it: let TCP port {port} and all above 1024 pass"
        return problem(f"{where} does not answer at all", value, mend=mend)
    return problem(f"{where} is not reached: {result}", value)


@check(
    "rendezvous.port_range",
    asks="MASTER_PORT is not among the ports that the system hands out by itself",
    mend="choose a port below the range, or sudo sysctl net.ipv4.ip_local_reserved_ports=PORT",
)
def check_port_range(machine: Machine) -> Findings:
    """A port of the ephemeral range may be taken by any connection."""
    words = (machine.read(PORT_RANGE) or "").split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return
    low, high = map(int, words)
    port = master_of(machine)[1]
    value = {"range": [low, high], "port": port}
    if high - low < 5000:
        yield warning(f"only ports {low} to {high} are handed out: many ranks need more", value)
    elif port and low <= port <= high and str(port) not in (machine.read(RESERVED) or ""):
        what = f"MASTER_PORT={port} lies in {low} to {high}: another connection may take it"
        yield note(what, value, mend=f"a port below {low} is safe, 29500 with most systems")
    else:
        yield ok(f"ports {low} to {high} are handed out" + f", not {port}" * bool(port), value)


CHECKS = (check_ranks, check_master, check_port_range)
