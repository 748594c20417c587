"""Two ways to compute the same, timed in turns, and without the time that others took.

On a machine that others use as well, one measurement after the other compares two hours of the
day. Here each round times both; of a round in which other programs had more than a tenth of the
machine nothing is kept, as long as there are others.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

MAX_OTHERS = 0.1
"""Share of the machine that other programs may have in a round that counts."""
TURN_S = 0.06
"""Least length of a turn: the kernel counts the time of processors in ticks of 10 ms."""
MIN_ROUNDS = 3
_WARM_BELOW_S = 0.25


@dataclass(frozen=True)
class Round:
    """One turn each.

    Attributes:
        own_s: median of a call, seconds.
        base_s: the same of what it is compared with.
        others: share of the machine that other programs had.
    """

    own_s: float
    base_s: float
    others: float


@dataclass(frozen=True)
class Timing:
    """What rounds tell.

    Attributes:
        seconds: of a call, the median.
        quartiles: of the same.
        ratio: base / own, the median over rounds; above 1 it is faster.
        ratio_quartiles: of the same.
        num_rounds: that count.
        is_quiet: whether others left the machine alone in them.
    """

    seconds: float
    quartiles: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]
    num_rounds: int
    is_quiet: bool

    @property
    def error(self) -> float:
        """95 % of how far the median ratio may be off, as a share (McGill et al. 1978)."""
        low, high = self.ratio_quartiles
        return 1.57 * (high - low) / math.sqrt(self.num_rounds) / self.ratio


def take_turns(
    own: Callable[[], object], base: Callable[[], object], seconds: float
) -> list[Round]:
    """Time two functions in turns for about so many seconds, three rounds at least.

    Both have been called before: what a first call gets ready is not timed.
    """
    calls = [_calls_of(each) for each in (own, base)]
    rounds: list[Round] = []
    end = time.perf_counter() + seconds
    while len(rounds) < MIN_ROUNDS or time.perf_counter() < end:
        order = (0, 1) if len(rounds) % 2 == 0 else (1, 0)
        others = _Others()
        took = {at: _turn((own, base)[at], calls[at]) for at in order}
        rounds.append(Round(took[0], took[1], others.share()))
    return rounds


def summarise(rounds: Sequence[Round]) -> Timing:
    """Return what rounds tell: of the quiet ones, or the quieter half where those are too few."""
    kept = [each for each in rounds if each.others <= MAX_OTHERS]
    is_quiet = len(kept) >= MIN_ROUNDS
    if not is_quiet:
        by_noise = sorted(rounds, key=lambda each: each.others)
        kept = by_noise[: max(MIN_ROUNDS, len(rounds) // 2)]
    ratios = [each.base_s / each.own_s for each in kept]
    times = [each.own_s for each in kept]
    return Timing(
        median(times), _quartiles(times), median(ratios), _quartiles(ratios), len(kept), is_quiet
    )


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def _calls_of(call: Callable[[], object]) -> int:
    began = time.perf_counter()
    call()
    return max(1, math.ceil(TURN_S / max(time.perf_counter() - began, 1e-6)))


def _turn(call: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    call()  # caches and threads of the other one are gone
    first = time.perf_counter() - began
    if first > _WARM_BELOW_S:
        return first
    times = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return median(times)


class _Others:
    """How much of the machine other programs have from now on."""

    def __init__(self) -> None:
        self._busy, self._own, self._at = _busy_s(), time.process_time(), time.perf_counter()

    def share(self) -> float:
        span = (time.perf_counter() - self._at) * (os.cpu_count() or 1)
        others = (_busy_s() - self._busy) - (time.process_time() - self._own)
        return max(0.0, others / span)


def _busy_s() -> float:
    """Return the seconds of all processors that were not idle; 0 where nobody counts them."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
