"""Chart axes: where the ticks are and where a value falls.

Paper: Heckbert, "Nice Numbers for Graph Labels", Graphics Gems, 1990: ticks at 1, 2 or 5 times a
power of ten.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, on a straight or a logarithmic scale, and `ticks`."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Return where values fall, 0 at `low`, 1 at `high`."""
        if self.is_log:
            span = math.log(self.high) - math.log(self.low)
            return (np.log(np.maximum(values, self.low)) - math.log(self.low)) / span
        return (values - self.low) / (self.high - self.low)


def linear_axis(low: float, high: float, count: int = 5, is_rounded: bool = True) -> Axis:
    """Return an axis over `low..high` with about `count` ticks.

    Args:
        low: least value.
        high: greatest value; widened where it equals `low`.
        count: ticks wanted.
        is_rounded: whether the axis ends on ticks, rather than exactly at `low` and `high`.
    """
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    step = _nice_step((high - low) / max(count - 1, 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [at * step for at in range(first, last + 1)]
    if is_rounded:
        return Axis(ticks[0], ticks[-1], tuple(ticks))
    slack = 1e-9 * (high - low)
    return Axis(low, high, tuple(tick for tick in ticks if low - slack <= tick <= high + slack))


def log_axis(low: float, high: float) -> Axis:
    """Return a logarithmic axis over `low..high`, both above 0."""
    if high <= low:
        low, high = low / 2, high * 2
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / 6))
    digits = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    ticks = [digit * 10.0**power for power in range(first, last + 1, every) for digit in digits]
    low = max([tick for tick in ticks if tick <= low * (1 + 1e-9)], default=low)
    high = min([tick for tick in ticks if tick >= high * (1 - 1e-9)], default=high)
    return Axis(low, high, tuple(tick for tick in ticks if low <= tick <= high), is_log=True)


def _nice_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    for digit in (1, 2, 5):
        if raw <= digit * power * (1 + 1e-9):
            return digit * power
    return 10 * power
