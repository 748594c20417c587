"""Confusion: which classes are taken for which, and the scores per class that follow from it.

precision = TP / predicted, recall = TP / support, F1 = 2 TP / (predicted + support); a score whose
denominator is 0 is 0, as in scikit-learn with `zero_division=0`.

Shapes: N samples, C classes.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassScores:
    """`precision`, `recall`, `f1` float64 (C,) and `support`, `predicted` int64 (C,) by class."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    predicted: np.ndarray

    def macro(self) -> tuple[float, float, float]:
        """Return precision, recall, F1 averaged over the classes that occur or are predicted."""
        occurs = (self.support + self.predicted) > 0
        return _averages(self, occurs.astype(np.float64))

    def weighted(self) -> tuple[float, float, float]:
        """Return precision, recall, F1 averaged over the classes, weighted by support."""
        return _averages(self, self.support.astype(np.float64))


@dataclass(frozen=True)
class ConfusedPair:
    """`count` samples of class `target`, `share` of them, were taken for `predicted`."""

    target: int
    predicted: int
    count: int
    share: float


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return counts, int64 (C, C): row = target, column = prediction."""
    cells = np.bincount(targets * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def class_scores(targets: np.ndarray, predicted: np.ndarray, num_classes: int) -> ClassScores:
    """Return precision, recall and F1 of each class; needs memory for C, not C x C, numbers.

    Args:
        targets: int64 (N,), in 0..C-1.
        predicted: int64 (N,), in 0..C-1.
        num_classes: C.
    """
    support = np.bincount(targets, minlength=num_classes)
    num_predicted = np.bincount(predicted, minlength=num_classes)
    hits = np.bincount(targets[targets == predicted], minlength=num_classes)
    return ClassScores(
        precision=hits / np.maximum(num_predicted, 1),
        recall=hits / np.maximum(support, 1),
        f1=2 * hits / np.maximum(num_predicted + support, 1),
        support=support,
        predicted=num_predicted,
    )


def most_confused(
    targets: np.ndarray, predicted: np.ndarray, num_classes: int, limit: int
) -> list[ConfusedPair]:
    """Return the `limit` most frequent mistakes, most frequent first."""
    wrong = targets != predicted
    cells, counts = np.unique(targets[wrong] * num_classes + predicted[wrong], return_counts=True)
    support = np.bincount(targets, minlength=num_classes)
    pairs = []
    for at in np.argsort(-counts, kind="stable")[:limit]:
        target, guess = divmod(int(cells[at]), num_classes)
        count = int(counts[at])
        pairs.append(ConfusedPair(target, guess, count, count / int(support[target])))
    return pairs


def _averages(scores: ClassScores, weights: np.ndarray) -> tuple[float, float, float]:
    total = max(float(weights.sum()), 1.0)
    return (
        float(scores.precision @ weights / total),
        float(scores.recall @ weights / total),
        float(scores.f1 @ weights / total),
    )
