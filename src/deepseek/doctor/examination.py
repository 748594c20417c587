"""All checks, in the order of the table; and all they find on a machine."""

from concurrent.futures import ThreadPoolExecutor

from deepseek.doctor import (
    clock,
    cluster,
    disk,
    gpu_topology,
    kernel,
    memory,
    network,
    nvidia,
    process_limits,
    processor,
    rdma,
    rendezvous,
    torch_install,
    variable_checks,
)
from deepseek.doctor.finding import Check, Finding
from deepseek.doctor.machine import Machine

CHECKS: tuple[Check, ...] = (
    *torch_install.CHECKS,
    *nvidia.CHECKS,
    *gpu_topology.CHECKS,
    *variable_checks.CHECKS,
    *network.CHECKS,
    *rdma.CHECKS,
    *rendezvous.CHECKS,
    *clock.CHECKS,
    *process_limits.CHECKS,
    *memory.CHECKS,
    *processor.CHECKS,
    *disk.CHECKS,
    *kernel.CHECKS,
    *cluster.CHECKS,
)
NUM_THREADS = 16
"""Most checks wait for another process or for the network: one slow answer delays no other."""


def examine(machine: Machine | None = None) -> list[Finding]:
    """Run all checks.

    Args:
        machine: this one by default.

    Returns:
        what was found, in the order of `CHECKS`.
    """
    machine = machine or Machine()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(lambda check: check(machine), CHECKS)
        return [finding for findings in found for finding in findings]
