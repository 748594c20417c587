"""How fast a device exchanges memory with its host, measured, and how much of it costs no time."""

from typing import NamedTuple

import torch

SIZE_BYTES = 256 << 20
NUM_TIMED = 3


class HostLink(NamedTuple):
    """Bytes a second between a device and pinned memory of its host.

    Attributes:
        to_host: from the device.
        to_device: from the host.
    """

    to_host: float
    to_device: float

    def hidden_bytes(self, forward_s: float, backward_s: float) -> float:
        """Return what goes to the host in a forward pass and comes back in a backward pass."""
        return min(self.to_host * forward_s, self.to_device * backward_s)

    def round_trip_s(self, num_bytes: float) -> float:
        """Return the seconds of going and coming back, where nothing else is done meanwhile."""
        return num_bytes / self.to_host + num_bytes / self.to_device


def measure_link(device: torch.device) -> HostLink | None:
    """Measure both directions with 256 MiB, three times each; `None` where the host is the device.

    Args:
        device: whose work is waited for.
    """
    if device.type != "cuda":
        return None
    here = torch.empty(SIZE_BYTES, dtype=torch.uint8, device=device)
    host = torch.empty(SIZE_BYTES, dtype=torch.uint8, pin_memory=True)
    return HostLink(_bandwidth(host, here), _bandwidth(here, host))


def _bandwidth(target: torch.Tensor, source: torch.Tensor) -> float:
    target.copy_(source, non_blocking=True)  # the first touches the pages
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(NUM_TIMED):
        target.copy_(source, non_blocking=True)
    ended.record()
    ended.synchronize()
    return NUM_TIMED * target.nbytes / (began.elapsed_time(ended) / 1000)
