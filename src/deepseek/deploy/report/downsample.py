"""Downsampling: a long series as one point a pixel column, with the range of what it stands for.

Paper: Jugel, Jerzak, Hackenbroich, Markl, "M4: A Visualization-Oriented Time Series Data
Aggregation", VLDB 2014: per-column extremes keep what a reader could see at that resolution. Here
each column also keeps its mean, which is drawn as the line, with the extremes as a band around it:
a spike of one step in a million stays visible.

Shapes: P points, B <= num_columns columns that hold at least one point.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Downsampled:
    """Per column `x`, `mean`, `low`, `high`, float64 (B,); `last` is the last point itself."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    last: tuple[float, float]
    is_reduced: bool


def downsample(x: np.ndarray, y: np.ndarray, num_columns: int = 240) -> Downsampled:
    """Reduce points to at most `num_columns`; a series of up to twice as many is returned as it is.

    Args:
        x: finite float64 (P,), in any order.
        y: finite float64 (P,).
        num_columns: columns of equal width between the least and the greatest `x`.
    """
    if len(x) > 1 and (np.diff(x) < 0).any():
        order = np.argsort(x, kind="stable")
        x, y = x[order], y[order]
    last = (float(x[-1]), float(y[-1]))
    if len(x) <= 2 * num_columns or x[0] == x[-1]:
        x, y = x[: 2 * num_columns], y[: 2 * num_columns]
        return Downsampled(x, y, y, y, last, is_reduced=False)
    column = ((x - x[0]) * (num_columns / (x[-1] - x[0]))).astype(np.int64)
    column = np.minimum(column, num_columns - 1)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    counts = np.diff(starts, append=len(x))
    return Downsampled(
        x=np.add.reduceat(x, starts) / counts,
        mean=np.add.reduceat(y, starts) / counts,
        low=np.minimum.reduceat(y, starts),
        high=np.maximum.reduceat(y, starts),
        last=last,
        is_reduced=True,
    )
