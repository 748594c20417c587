"""How a device is used: CUDA's allocator, and how many CPU threads."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

# An operator below this much work takes some 20 us on one core: sharing it out brings nothing on a
# quiet machine, and on a busy one every thread waits for the one that lost its core.
MIN_PARALLEL_OP_FLOPS = 2e6
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def grow_segments(setting: bool | Literal["auto"]) -> bool:
    """Say whether CUDA's allocator grows its segments, before it makes the first.

    Args:
        setting: `auto` leaves the choice to `PYTORCH_ALLOC_CONF`; where that is not set: yes.

    Returns:
        Whether it was told to.
    """
    given = next((os.environ[name] for name in ALLOCATOR_VARIABLES if os.environ.get(name)), "")
    if not torch.cuda.is_available() or (setting == "auto" and (given or sys.platform == "win32")):
        return False
    grows = setting in (True, "auto")
    parts = [given] if given else []
    torch._C._accelerator_setAllocatorSettings(",".join([*parts, f"expandable_segments:{grows}"]))
    return grows


def choose_cpu_threads(forward_flops: float, num_ops: int) -> int:
    """Return how many threads an operator is shared between on the CPU: one where they are small.

    `OMP_NUM_THREADS`, where it is set, has the last word.

    Args:
        forward_flops: work of a forward pass of one micro-batch.
        num_ops: operators of a forward pass.
    """
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ or forward_flops / max(1, num_ops) >= MIN_PARALLEL_OP_FLOPS:
        return threads
    return 1


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Compute with `count` threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
