"""What a machine is, as far as the speed of a model depends on it."""

import os
import platform
from pathlib import Path

import torch


def fingerprint() -> dict[str, str]:
    """Return processor, its threads, graphics card and torch of this machine, JSON-able."""
    found = {
        "processor": _processor(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": str(len(os.sched_getaffinity(0))),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def differences(measured: dict[str, str], here: dict[str, str]) -> list[str]:
    """Return what differs between two machines, in words."""
    keys = [key for key in measured | here if measured.get(key) != here.get(key)]
    return [f"{key} {measured.get(key, 'none')!r}, here {here.get(key, 'none')!r}" for key in keys]


def processor_flags() -> frozenset[str]:
    """Return the instruction sets of the processor as Linux names them; empty elsewhere."""
    return frozenset(_cpuinfo("flags").split())


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor()


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
