"""What waits in the memory of the host: its bytes, and the seconds of copies and of its optimizer.

```
optimizer    a weight's state comes to the device, is updated, and goes back: both ways in order
             with the updates, hidden behind nothing
parameters   a shard goes to the device before it is gathered, and a gradient to the host after it
             is reduced, beside the computation as these are; the host updates after the last one.
             From a second reduction in a step on, the pass waits until the host has added it up
```
Rajbhandari et al. (2021, ZeRO-Infinity, arXiv:2104.07857), as this framework and FSDP2 do it. No
published row here is of it.
"""

from typing import NamedTuple

from deepseek.planner.cluster import Host
from deepseek.planner.constants import Calibration
from deepseek.planner.footprint import count_shards, count_stored_bytes
from deepseek.planner.parallel_plan import ParallelPlan
from deepseek.planner.traffic import count_rounds

USABLE_SHARE = 0.9
"""Of the host's memory: processes, loaders and caches have the rest."""


class HostTime(NamedTuple):
    """Seconds that a step spends on the link to the host, and that the host computes."""

    before_gather_s: float = 0.0
    """Of a gather of all weights of a rank: its shards come to the device."""
    after_reduction_s: float = 0.0
    """Of the one reduction of a step: gradients go to the host."""
    alone_s: float = 0.0
    """Of a step: what nothing hides."""


def time_host(
    host: Host, plan: ParallelPlan, trained: float, local: float, cal: Calibration
) -> HostTime:
    """Return the seconds of a rank.

    Args:
        host: of its GPU.
        plan: with `offload`.
        trained: share of the weights that is trained.
        local: weights of the rank before `dp_shard`.
        cal: constants.
    """
    if plan.offload == "none":
        return HostTime()
    link = host.link_bandwidth * cal.host_link_share
    shards = count_shards(plan)
    if plan.offload == "optimizer":
        return HostTime(alone_s=2 * count_host_bytes(plan, trained, local) / link)
    memory = host.memory_bandwidth * cal.host_memory_share
    stored, weights = count_stored_bytes(plan), local / shards
    gradients = plan.gradient_bytes * trained * weights
    # Reads gradients for the norm, scales them, updates by them; reads, writes weights and state.
    update = 4 * gradients + 2 * (stored + plan.state_bytes) * trained * weights
    _, reductions = count_rounds(plan)
    if reductions == 1:
        return HostTime(stored * weights / link, gradients / link, update / memory)
    added_s = (reductions - 1) * 3 * gradients / memory
    alone_s = reductions * gradients / link + added_s + update / memory
    return HostTime(stored * weights / link, 0.0, alone_s)


def count_host_bytes(plan: ParallelPlan, trained: float, local: float) -> float:
    """Bytes of the host's memory that a rank takes.

    Args:
        plan: with `offload`.
        trained: share of the weights that is trained.
        local: weights of the rank before `dp_shard`.
    """
    shards = count_shards(plan)
    if plan.offload == "parameters":
        each = count_stored_bytes(plan) + (plan.gradient_bytes + plan.state_bytes) * trained
        return each * local / shards
    if plan.offload == "optimizer":
        copies = plan.dp_replicate * plan.cp if plan.shards_optimizer and shards == 1 else 1
        return plan.state_bytes * trained * local / shards / copies
    return 0.0


def fits_host(host: Host, num_bytes: float) -> bool:
    """Whether the host has so much memory for each GPU."""
    return num_bytes <= count_usable_host_bytes(host)


def count_usable_host_bytes(host: Host) -> float:
    """Bytes of a GPU's share of the host that a training may take."""
    return USABLE_SHARE * host.memory_bytes
