"""Pipelines: which blocks a rank holds, how long it waits, how many micro-batches it keeps.

Schedules and their papers: gpipe (Huang et al. 2019), 1f1b (Narayanan et al. 2019),
interleaved_1f1b (Narayanan et al. 2021), looped_bfs (Lamy-Poirier 2022), zero bubble (Qi et al.
2023), zbv (Qi et al. 2024).
"""

from functools import lru_cache

from deepseek.planner.parallel_plan import Schedule

LOOPED = ("interleaved_1f1b", "looped_bfs", "interleaved_zero_bubble", "zbv_zero_bubble")


@lru_cache(maxsize=4096)
def divide_layers(num_layers: int, pp: int, virtual_stages: int, schedule: str) -> tuple[int, ...]:
    """Blocks of each pipeline rank.

    What does not divide evenly goes to stages in the middle: the first has the embedding, the last
    the logits.
    """
    num_stages = pp * virtual_stages
    each, extra = divmod(num_layers, num_stages)
    start = (num_stages - extra) // 2
    counts = [each + (start <= stage < start + extra) for stage in range(num_stages)]
    per_rank = [0] * pp
    for stage, count in enumerate(counts):
        rank = stage % pp
        if schedule == "zbv_zero_bubble" and (stage // pp) % 2:
            rank = pp - 1 - rank
        per_rank[rank] += count
    return tuple(per_rank)


def find_head_rank(pp: int, schedule: str) -> int:
    """The rank that has the logits: the last, or with a V-shaped placement the first."""
    return 0 if schedule == "zbv_zero_bubble" else pp - 1


def bubble_share(schedule: Schedule, virtual_stages: int) -> float:
    """Part of a micro-batch's forward and backward that a rank waits for each other rank.

    With forward, input gradient and weight gradient of equal length, zero-bubble schedules fill
    the wait with weight gradients: (F + B - W) of (F + B + W) is left, in a V (F + B - 2W).
    """
    if schedule == "zbv_zero_bubble":
        return 0.0
    if schedule == "interleaved_zero_bubble":
        return 1.0 / (3.0 * virtual_stages)
    if schedule in LOOPED:
        return 1.0 / virtual_stages
    return 1.0


@lru_cache(maxsize=4096)
def count_in_flight(
    schedule: Schedule, pp: int, virtual_stages: int, num_micro_batches: int
) -> tuple[float, ...]:
    """Micro-batches whose activations each rank holds at its peak, in those of all its blocks.

    For interleaved_1f1b the first rank has 1 + (pp - 1) / (pp * virtual_stages) times the blocks'
    worth of a 1f1b rank (Korthikanti et al. 2022, section 4.2.3).
    """
    limit = float(num_micro_batches)
    if pp == 1:
        return (1.0,)
    if schedule in ("gpipe", "looped_bfs"):
        return (limit,) * pp
    if schedule == "zbv_zero_bubble":
        return (min(limit, float(pp)),) * pp
    if schedule == "1f1b":
        return tuple(min(limit, float(pp - rank)) for rank in range(pp))
    v = virtual_stages
    warm = (2 * (pp - rank - 1) + (v - 1) * pp + 1 for rank in range(pp))
    return tuple(min(limit, chunks / v) for chunks in warm)
