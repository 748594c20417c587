"""Pipelines: which blocks a rank holds, how long it waits, how many micro-batches it keeps.

Schedules and their papers: gpipe (Huang et al. 2019), 1f1b (Narayanan et al. 2019),
interleaved_1f1b (Narayanan et al. 2021), looped_bfs (Lamy-Poirier 2022), zero bubble (Qi et al.
2023), zbv (Qi et al. 2024).
"""

from functools import lru_cache
from typing import NamedTuple

from deepseek.planner.parallel_plan import Schedule

LOOPED = ("interleaved_1f1b", "looped_bfs", "interleaved_zero_bubble", "zbv_zero_bubble")
FORWARD_FIRST = ("gpipe", "looped_bfs")
"""All micro-batches go forward before the first goes backward."""


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


def bubble_share(schedule: Schedule, virtual_stages: int, *, puts_off: bool = True) -> float:
    """Part of a micro-batch's forward and backward that a rank waits for each other rank.

    With forward, input gradient and weight gradient of equal length, zero-bubble schedules fill
    the wait with weight gradients: (F + B - W) of (F + B + W) is left, in a V (F + B - 2W); unless
    they put none off (`ParallelPlan.puts_off_weights`).
    """
    if schedule == "zbv_zero_bubble" and puts_off:
        return 0.0
    if schedule == "interleaved_zero_bubble" and puts_off:
        return 1.0 / (3.0 * virtual_stages)
    if schedule in LOOPED:
        return 1.0 / virtual_stages
    return 1.0


class InFlight(NamedTuple):
    """What a rank holds of micro-batches at a moment, in those of all its blocks.

    Attributes:
        held: their activations.
        waiting: of them, those whose weights' gradients are put off: torch keeps their activations
            until then, and the gradients that products and norms were given as well.
    """

    held: float
    waiting: float = 0.0


@lru_cache(maxsize=4096)
def list_in_flight(
    schedule: Schedule,
    pp: int,
    virtual_stages: int,
    num_micro_batches: int,
    *,
    puts_off: bool = True,
) -> tuple[tuple[InFlight, ...], ...]:
    """Moments of each rank, one of which is its peak.

    For interleaved_1f1b the first rank has 1 + (pp - 1) / (pp * virtual_stages) times the blocks'
    worth of a 1f1b rank (Korthikanti et al. 2022, section 4.2.3). For the zero-bubble schedules
    it is counted in passes of a stage, as torch orders them: rank `r` of an interleaved one puts
    gradients of weights off for `r` passes, and of a V only when there is nothing left to begin.
    """
    if pp == 1:
        return ((InFlight(1.0),),)
    limit, v = num_micro_batches * virtual_stages, virtual_stages

    def moment(passes: int, waiting: int = 0) -> InFlight:
        return InFlight(min(limit, passes) / v, min(limit, waiting) / v)

    if schedule in FORWARD_FIRST:
        return ((moment(limit),),) * pp
    if schedule == "1f1b":
        return tuple((moment(v * (pp - rank)),) for rank in range(pp))
    if schedule == "interleaved_zero_bubble":
        return tuple(
            (moment(v * pp, rank + 1) if puts_off else moment(v * pp - rank),) for rank in range(pp)
        )
    if schedule == "zbv_zero_bubble" and not puts_off:
        return ((moment(2 * pp),),) * pp
    if schedule == "zbv_zero_bubble":
        return tuple((moment(2 * pp, 1), moment(pp + rank, 2 * rank + 1)) for rank in range(pp))
    return tuple((moment(2 * (pp - rank - 1) + (v - 1) * pp + 1),) for rank in range(pp))
