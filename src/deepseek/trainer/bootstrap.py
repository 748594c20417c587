"""How sure a score is: the same score of cases drawn anew, with replacement.

Paper: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (percentiles).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deepseek.datasets.randomness import uniforms
from deepseek.errors import ConfigError, DataError

NUM_ROUNDS = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A score and where it lies with the given confidence."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def draw_again(num_items: int, num_rounds: int, seed: int) -> Iterator[np.ndarray]:
    """Yield which items are drawn in each round, int64 (num_items,)."""
    for number in range(num_rounds):
        yield (uniforms(num_items, seed, number) * num_items).astype(np.int64)


def bootstrap_interval(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float] | None = None,
    *,
    groups: Sequence | None = None,
    num_rounds: int = NUM_ROUNDS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Return a statistic of `values` with its interval.

    Args:
        values: one row a case, (N, ...).
        statistic: of rows; by default the mean of what is not NaN. Rounds that give NaN are left
            out.
        groups: what each case belongs to, such as its patient, (N,): whole groups are drawn.
        num_rounds: draws.
        confidence: 0..1, of the interval.
        seed: of the draws.

    Raises:
        DataError: there are no cases.
        ConfigError: `groups` are not one a case.
    """
    rows, statistic = np.asarray(values), statistic or _mean
    if len(rows) == 0:
        raise DataError("there are no cases to draw from", fix="give at least one")
    if groups is not None and len(groups) != len(rows):
        raise ConfigError(
            f"{len(groups)} groups for {len(rows)} cases", fix="give the group of each case"
        )
    _, numbers = np.unique(np.arange(len(rows)) if groups is None else groups, return_inverse=True)
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    found = [
        statistic(rows[drawn if groups is None else np.concatenate([members[i] for i in drawn])])
        for drawn in draw_again(len(members), num_rounds, seed)
    ]
    return interval_of(statistic(rows), np.array(found), confidence)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def interval_of(value: float, found: np.ndarray, confidence: float) -> Interval:
    """Return the interval that holds this share of what the rounds found."""
    known = found[~np.isnan(found)]
    if len(known) == 0:
        return Interval(float(value), float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))
