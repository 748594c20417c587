"""Environment of agents and workers: threads, flight recorder, nothing left over from outside."""

import math
import os
from pathlib import Path

from deepseek.visible_cards import count_visible

THREADS = "OMP_NUM_THREADS"
LAUNCH_DIR = "DEEPSEEK_LAUNCH_DIR"
"""Private folder of one launch on one host: reports of the workers, logs, traces."""
FLIGHT_RECORDER_ENTRIES = 2000
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def count_cores(quota: Path = CPU_QUOTA) -> int:
    """Return how many cores this process may use: by affinity and by the container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        limit, period = quota.read_text().split()
        cores = min(cores or 1, math.ceil(int(limit) / int(period)))
    except (OSError, ValueError):  # no cgroup v2, or the quota is "max"
        pass
    return max(1, cores or 1)


def count_gpus(devices: Path = Path("/dev")) -> int:
    """Return the number of NVIDIA GPUs that a process would see, without asking the driver."""
    files = [path for path in devices.glob("nvidia*") if path.name[len("nvidia") :].isdecimal()]
    # WSL has no such files: there the variable alone says how many
    return count_visible(os.environ.get("CUDA_VISIBLE_DEVICES"), len(files) or None)


def thread_default(nproc: int) -> dict[str, str]:
    """Return `OMP_NUM_THREADS` for `nproc` processes on this host.

    torchrun would set 1 and warn, which leaves cores idle when there are fewer processes than
    cores.
    """
    return {THREADS: str(max(1, count_cores() // nproc))}


def recorder_defaults(launch_dir: Path) -> dict[str, str]:
    """Return what keeps the last collectives of each rank, and writes them when one hangs.

    The older names, TORCH_NCCL_TRACE_BUFFER_SIZE and so on, make torch print a warning.
    """
    return {
        "TORCH_FR_BUFFER_SIZE": str(FLIGHT_RECORDER_ENTRIES),
        "TORCH_FR_DUMP_TEMP_FILE": str(launch_dir / "flight_recorder" / "rank_"),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }
