"""Calibration: does a prediction made with probability p come true in a share p of the cases?

Paper: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
arXiv:1706.04599, equations 2 to 5: M bins ((m-1)/M, m/M] of the top probability; ECE = sum |B_m|/n
|acc(B_m) - conf(B_m)|, MCE = the largest of those gaps.

Shapes: N samples, M bins.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """A reliability diagram in numbers.

    Args:
        edges: float64 (M + 1,), from 0 to 1.
        count: int64 (M,), samples per bin.
        confidence: float64 (M,), mean top probability per bin, NaN where it is empty.
        accuracy: float64 (M,), share of correct predictions per bin, NaN where it is empty.
        ece: expected calibration error, 0..1.
        mce: maximum calibration error, 0..1.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float
    mce: float


def calibrate(confidence: np.ndarray, correct: np.ndarray, num_bins: int = 15) -> Calibration:
    """Bin predictions by their confidence.

    Args:
        confidence: (N,), the probability of the predicted class, 0..1; N > 0.
        correct: bool (N,).
        num_bins: M, of equal width.
    """
    confidence = confidence.astype(np.float64)
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    bins = np.searchsorted(edges[1:-1], confidence, side="left")
    count = np.bincount(bins, minlength=num_bins)
    weight = np.maximum(count, 1)
    mean = np.bincount(bins, weights=confidence, minlength=num_bins) / weight
    accuracy = np.bincount(bins, weights=correct.astype(np.float64), minlength=num_bins) / weight
    gap = np.abs(accuracy - mean) * (count > 0)
    return Calibration(
        edges=edges,
        count=count,
        confidence=np.where(count > 0, mean, np.nan),
        accuracy=np.where(count > 0, accuracy, np.nan),
        ece=float((gap * count).sum() / count.sum()),
        mce=float(gap.max()),
    )
