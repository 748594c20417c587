"""Which job this process belongs to, as the environment tells: torchrun, Slurm, Kubernetes."""

from dataclasses import dataclass

from deepseek.doctor.machine import Machine


@dataclass(frozen=True)
class Job:
    """What the environment says of the job.

    Attributes:
        scheduler: `slurm`, `kubernetes` or `none`.
        num_hosts: how many machines train together, 1 where nothing says more.
        world_size: number of processes, 0 where nothing says it.
        master: address and port of the rendezvous; empty and 0 where not set.
    """

    scheduler: str
    num_hosts: int
    world_size: int
    master: tuple[str, int]


def read_job(machine: Machine) -> Job:
    """Read the variables of torchrun, Slurm and Kubernetes."""
    env = machine.env
    world_size = number(env.get("WORLD_SIZE")) or 0
    local = number(env.get("LOCAL_WORLD_SIZE")) or number(env.get("PET_NPROC_PER_NODE"))
    hosts = [
        number(env.get("SLURM_JOB_NUM_NODES")) or number(env.get("SLURM_NNODES")) or 1,
        number((env.get("PET_NNODES") or "1").rpartition(":")[2]) or 1,
        -(-world_size // local) if local else 1,
    ]
    if "SLURM_JOB_ID" in env:
        scheduler = "slurm"
    else:
        scheduler = "kubernetes" if machine.inside() == "kubernetes" else "none"
    return Job(scheduler, max(hosts), world_size, master_of(machine))


def master_of(machine: Machine) -> tuple[str, int]:
    """Return host and port of the rendezvous: MASTER_ADDR, or torchrun's endpoint."""
    env = machine.env
    host, port = env.get("MASTER_ADDR", ""), number(env.get("MASTER_PORT")) or 0
    if not host and env.get("PET_RDZV_ENDPOINT"):
        host, _, rest = env["PET_RDZV_ENDPOINT"].rpartition(":")
        host, port = (host, number(rest) or 0) if host else (rest, 29400)
    return host or env.get("PET_MASTER_ADDR", ""), port or number(env.get("PET_MASTER_PORT")) or 0


def number(text: str | None) -> int | None:
    """Return the whole number that a text holds, `None` for anything else."""
    return int(text) if text is not None and text.strip().isdigit() else None
