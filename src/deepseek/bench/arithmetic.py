"""How fast the device multiplies matrices and moves memory."""

from collections.abc import Callable
from time import perf_counter

import torch

from deepseek.bench.result import Rate

FIRST_SIZE, LAST_SIZE = 256, 8192
COPY_BYTES = {"cpu": 128 * 2**20, "cuda": 2**30}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure_matmul(precision: str, device: torch.device, seconds: float) -> Rate:
    """Return the best rate of a square matrix product, over sizes that double.

    Numbers are random: chips that their power limits slow down are faster on zeros. In fp32
    products are computed as training does it by default.

    Args:
        precision: `fp32` or `bf16`.
        device: where.
        seconds: to spend; a size that takes an eighth of them is the last.
    """
    dtype = DTYPES[precision]
    end = perf_counter() + seconds
    best, best_size, size = 0.0, FIRST_SIZE, FIRST_SIZE
    while size <= LAST_SIZE:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        share_s = max(0.0, end - perf_counter()) / 2
        call_s = best_time(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, share_s)
        rate = 2 * size**3 / call_s / 1e12
        if rate > best:
            best, best_size = rate, size
        # the next size is eight times as much work
        if perf_counter() + 16 * call_s > end:
            break
        size *= 2
    return Rate(f"matmul {precision}", best, "TFLOP/s", f"{best_size} x {best_size}")


def measure_memory(device: torch.device, seconds: float) -> Rate:
    """Return the rate of a copy within the memory of `device`, reads and writes together."""
    num_bytes = COPY_BYTES.get(device.type, COPY_BYTES["cpu"])
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    call_s = best_time(lambda: target.copy_(source), device, seconds)
    rate = 2 * num_bytes / call_s / 1e9
    return Rate("memory", rate, "GB/s", f"copy of {num_bytes // 2**20} MiB, read and written")


def best_time(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the shortest time of a call after one that is not counted; two calls at least."""
    call()
    _wait(device)
    end = perf_counter() + seconds
    best = float("inf")
    while True:
        began = perf_counter()
        call()
        _wait(device)  # a GPU returns before it has computed
        now = perf_counter()
        best = min(best, now - began)
        if now >= end:
            return best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
