"""Where the time goes: samples per second and the share spent waiting for data."""

import resource
import sys
from time import perf_counter

import torch


class Throughput:
    """Counts since the last `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new window."""
        self.begin = perf_counter()
        self.num_samples = 0
        self.wait_s = 0.0
        self.paused_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds of training in this window; evaluation and saving do not count."""
        return max(perf_counter() - self.begin - self.paused_s, 1e-9)

    def record(self) -> dict[str, float]:
        """Return the window as numbers for `metrics.jsonl`."""
        return {
            "samples_per_s": self.num_samples / self.elapsed_s,
            "data_wait_share": min(1.0, self.wait_s / self.elapsed_s),
        }


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory used so far: of the device for CUDA, of the process for a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes(device: torch.device) -> int:
    """Return the memory of the process as it is now; its peak, where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_memory_bytes(device)


def available_memory_bytes(device: torch.device) -> int:
    """Return how much of it this process may have: on CUDA what nobody else holds, now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return total_memory_bytes(device)


def total_memory_bytes(device: torch.device) -> int:
    """Return how much memory there is."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
