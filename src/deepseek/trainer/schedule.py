"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to drift."""

import math
from dataclasses import dataclass
from typing import Literal

from deepseek.config.schedule import SCHEDULES as SCHEDULES
from deepseek.errors import ConfigError

AUTO_WARMUP_SHARE = 0.05
WSD_DECAY_SHARE = 0.2


def constant(progress: float, end: float) -> float:
    """Stay at the peak."""
    return 1.0


def linear(progress: float, end: float) -> float:
    """Fall in a straight line."""
    return 1 - (1 - end) * progress


def cosine(progress: float, end: float) -> float:
    """Fall along half a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5, one cycle)."""
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))


def polynomial(progress: float, end: float) -> float:
    """Fall as a square, fast first."""
    return end + (1 - end) * (1 - progress) ** 2


def wsd(progress: float, end: float) -> float:
    """Stay, then fall over the last fifth as 1 - sqrt (Hägele et al. 2024, arXiv 2405.18392)."""
    begin = 1 - WSD_DECAY_SHARE
    if progress <= begin:
        return 1.0
    return end + (1 - end) * (1 - math.sqrt((progress - begin) / WSD_DECAY_SHARE))


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step of a run.

    A run that ends by the clock is as far as its time, or as its steps where they are ahead.

    Args:
        name: a name of `SCHEDULES`.
        peak_lr: learning rate after the warm-up.
        max_steps: optimizer steps of the run; `None`: the time alone decides.
        warmup_steps: steps of linear rise from near zero; `None`: a share of an unknown number.
        min_lr_share: share of the peak at the end.
        warmup_share: share of the time that the rise takes; `None`: it takes `warmup_steps`.
    """

    name: str
    peak_lr: float
    max_steps: int | None
    warmup_steps: int | None
    min_lr_share: float
    warmup_share: float | None = None

    def lr(self, step: int, time_share: float = 0.0) -> float:
        """Return the learning rate of the update number `step`, counted from 0.

        Args:
            step: number of the update.
            time_share: of a time budget, 0..1, that will have gone when it is done.
        """
        rise, progress = self._by_steps(step)
        if self.warmup_share is not None and time_share > 0:
            share = self.warmup_share
            rise = max(rise, time_share / share if time_share < share else 1.0)
            progress = max(progress, (time_share - share) / (1 - share))
        else:
            progress = max(progress, time_share)
        if rise < 1:
            return self.peak_lr * rise
        return self.peak_lr * SCHEDULES.get(self.name)(min(1.0, progress), self.min_lr_share)

    def _by_steps(self, step: int) -> tuple[float, float]:
        """Return how far the rise is, and what follows it."""
        if self.warmup_steps is None:
            return 0.0, 0.0
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps, 0.0
        if self.max_steps is None:
            return 1.0, 0.0
        length = max(1, self.max_steps - self.warmup_steps)
        return 1.0, (step - self.warmup_steps) / length


def warmup_share(warmup: int | float | Literal["auto"], schedule: str) -> float | None:
    """Return the share of a run that its warm-up takes; `None` where it is given in steps.

    Args:
        warmup: steps (int), a share of the run (float below 1), or `"auto"`: 30 % for `one_cycle`,
            else 5 %.
        schedule: name of the schedule.
    """
    if warmup == "auto":
        return 0.3 if schedule == "one_cycle" else AUTO_WARMUP_SHARE
    return warmup if isinstance(warmup, float) else None


def resolve_warmup(
    warmup: int | float | Literal["auto"], schedule: str, max_steps: int | None
) -> int | None:
    """Return the number of warm-up steps; `None` for a share of an unknown number.

    Args:
        warmup: as `warmup_share` takes it.
        schedule: name of the schedule.
        max_steps: steps of the run, `None` where they are not known.

    Raises:
        ConfigError: the warm-up is longer than the run.
    """
    share = warmup_share(warmup, schedule)
    if max_steps is None:
        return None if share is not None else int(warmup)
    steps = round(share * max_steps) if share is not None else int(warmup)
    if steps > max_steps:
        raise ConfigError(
            f"warmup={steps} steps is longer than the run of {max_steps} steps",
            fix="shorten the warm-up, or give it as a share such as 0.05",
        )
    return steps
