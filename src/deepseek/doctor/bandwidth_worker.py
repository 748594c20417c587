"""One rank of the bandwidth test: `python -m deepseek.doctor.bandwidth_worker`, under torchrun.

Each collective is checked once with numbers, then timed as nccl-tests does: some calls back to
back between two synchronisations, several times over; the median, of the slowest rank. Rank 0
writes a line of JSON per measurement to the file `--output`.

Sizes are those of nccl-tests: what all ranks hold together of all-gather and reduce-scatter, and
what one rank holds of the others. send/recv is a ring: each rank sends to the next.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from torch import Tensor

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "send_recv")
FLOAT_BYTES = 4
NUM_SAMPLES = 7
NUM_WARM_UP = 2
MAX_CALLS = 20
SAMPLE_S = 0.02
"""Short calls are repeated until a sample takes about as long."""
TIMEOUT = timedelta(seconds=120)
PERIOD = 13
"""Numbers repeat after so many items: small, so that sums over ranks are exact in float32."""


@dataclass(frozen=True)
class Ring:
    """What a rank knows: its number, how many there are, and its device."""

    rank: int
    world_size: int
    device: str


def pattern(ring: Ring, num_items: int, rank: int, start: int = 0) -> "Tensor":
    """Return what `rank` contributes from position `start` on: `(position mod 13) + rank`."""
    import torch

    positions = torch.arange(start, start + num_items, device=ring.device)
    return (positions % PERIOD + rank).to(torch.float32)


def make_buffers(name: str, ring: Ring, num_items: int) -> tuple["Tensor", "Tensor"]:
    """Return what this rank gives, and where the result goes (the same for work in place)."""
    import torch

    part = num_items // ring.world_size
    given = pattern(ring, part if name == "all_gather" else num_items, ring.rank)
    if name in ("all_reduce", "broadcast"):
        return given, given
    num_results = part if name == "reduce_scatter" else num_items
    return given, torch.zeros(num_results, device=ring.device)


def communicate(name: str, ring: Ring, given: "Tensor", result: "Tensor") -> None:
    """Run a collective once."""
    import torch.distributed as dist

    if name == "all_reduce":
        dist.all_reduce(result)
    elif name == "all_gather":
        dist.all_gather_into_tensor(result, given)
    elif name == "reduce_scatter":
        dist.reduce_scatter_tensor(result, given)
    elif name == "broadcast":
        dist.broadcast(result, src=0)
    else:
        n, rank = ring.world_size, ring.rank
        send = dist.P2POp(dist.isend, given, (rank + 1) % n)
        receive = dist.P2POp(dist.irecv, result, (rank - 1) % n)
        for work in dist.batch_isend_irecv([send, receive]):
            work.wait()


def expect(name: str, ring: Ring, num_items: int) -> "Tensor":
    """Return what the result must be on this rank."""
    import torch

    n, part = ring.world_size, num_items // ring.world_size
    if name == "all_gather":
        return torch.cat([pattern(ring, part, rank) for rank in range(n)])
    if name == "broadcast":
        return pattern(ring, num_items, 0)
    if name == "send_recv":
        return pattern(ring, num_items, (ring.rank - 1) % n)
    is_scattered = name == "reduce_scatter"
    start = ring.rank * part if is_scattered else 0
    base = pattern(ring, part if is_scattered else num_items, 0, start)
    return base * n + n * (n - 1) // 2  # the sum over ranks of pattern + rank


def agree(ring: Ring, value: float) -> float:
    """Return the largest value of all ranks."""
    import torch
    import torch.distributed as dist

    tensor = torch.tensor([value], dtype=torch.float32, device=ring.device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.item()


def wait(ring: Ring) -> None:
    """Wait until the device has done what it was told."""
    import torch

    if ring.device != "cpu":
        torch.cuda.synchronize()


def measure(name: str, ring: Ring, size_bytes: int) -> dict[str, object]:
    """Check and time one collective at one size."""
    import torch.distributed as dist

    n = ring.world_size
    num_items = max(1, size_bytes // FLOAT_BYTES // n) * n
    given, result = make_buffers(name, ring, num_items)
    communicate(name, ring, given, result)
    wait(ring)
    num_wrong = int(agree(ring, float((result != expect(name, ring, num_items)).sum())))
    # Sums that go on and on would overflow.
    given.zero_()
    for _ in range(NUM_WARM_UP):
        communicate(name, ring, given, result)
    wait(ring)
    begin = time.perf_counter()
    communicate(name, ring, given, result)
    wait(ring)
    call_s = agree(ring, time.perf_counter() - begin)
    num_calls = max(1, min(MAX_CALLS, round(SAMPLE_S / call_s)))
    samples = []
    for _ in range(NUM_SAMPLES):
        dist.barrier()
        wait(ring)
        begin = time.perf_counter()
        for _ in range(num_calls):
            communicate(name, ring, given, result)
        wait(ring)
        samples.append((time.perf_counter() - begin) / num_calls)
    time_us = agree(ring, statistics.median(samples)) * 1e6
    return {
        "collective": name,
        "size_bytes": num_items * FLOAT_BYTES,
        "time_us": round(time_us, 2),
        "num_wrong": num_wrong,
    }


def join() -> tuple[Ring, str]:
    """Join the process group: NCCL where every rank has a card of its own, else Gloo."""
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, rank, world_size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    store.set_timeout(TIMEOUT)
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    has_card = local_rank < torch.cuda.device_count() and dist.is_nccl_available()
    # Ranks that chose different backends would wait for each other for ever.
    store.set(f"has_card/{rank}", str(int(has_card)))
    with_cards = [store.get(f"has_card/{other}") == b"1" for other in range(world_size)]
    backend = "nccl" if all(with_cards) else "gloo"
    device = "cpu"
    if backend == "nccl":
        torch.cuda.set_device(local_rank)
        device = f"cuda:{local_rank}"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    return Ring(rank, world_size, device), backend


def describe(ring: Ring, backend: str) -> dict[str, object]:
    """Return what was measured on."""
    import platform

    import torch
    import torch.distributed as dist

    names: list[str | None] = [None] * ring.world_size
    dist.all_gather_object(names, platform.node())
    is_cpu = ring.device == "cpu"
    return {
        "backend": backend,
        "world_size": ring.world_size,
        "num_hosts": len(set(names)),
        "device": "CPU" if is_cpu else torch.cuda.get_device_name(ring.device),
        "torch": torch.__version__,
    }


def write(file: TextIO | None, facts: dict[str, object]) -> None:
    """Write a line of JSON at once; the reader prints it while we go on."""
    if file is not None:
        file.write(json.dumps(facts) + "\n")
        file.flush()


def main() -> None:
    """Measure all collectives at all sizes."""
    import torch
    import torch.distributed as dist

    parser = argparse.ArgumentParser()
    parser.add_argument("--output", required=True)
    parser.add_argument("--sizes", required=True, help="bytes, separated by commas")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ring, backend = join()
    facts = describe(ring, backend)
    file = open(given.output, "a", encoding="utf-8") if ring.rank == 0 else None  # noqa: SIM115
    write(file, facts)
    for name in COLLECTIVES:
        for size in map(int, given.sizes.split(",")):
            write(file, measure(name, ring, size))
    write(file, {"is_complete": True})
    if file is not None:
        file.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
