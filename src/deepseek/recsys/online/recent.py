"""Metrics of what was predicted before it was learnt, and of a window of it.

The prequential estimate: Gama, Sebastiao and Rodrigues 2013, "On evaluating stream learning
algorithms" (Machine Learning 90), section 3.
"""

import numpy as np

EPSILON = 1e-7
NUM_BINS = 10


class Recent:
    """Predictions and labels of the newest examples of one label.

    Args:
        size: of the window.

    Attributes:
        total: examples ever.
        total_loss: sum of their losses, nats.
    """

    def __init__(self, size: int) -> None:
        self._probs = np.zeros(size, np.float32)
        self._labels = np.zeros(size, np.int8)
        self.total, self.total_loss = 0, 0.0
        self._first: np.ndarray | None = None

    def add(self, probs: np.ndarray, labels: np.ndarray) -> None:
        """Take predictions, float32 (N,), and what came, (N,)."""
        size = len(self._probs)
        places = (self.total + np.arange(len(probs))) % size
        self._probs[places], self._labels[places] = probs, labels
        self.total += len(probs)
        self.total_loss += float(losses(probs, labels).sum(dtype=np.float64))
        if self._first is None and self.total >= size:
            self._first = histogram(self._probs)

    @property
    def window(self) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and labels that are in the window, in no order."""
        count = min(self.total, len(self._probs))
        return self._probs[:count], self._labels[:count]

    def metrics(self) -> dict[str, float | int | None]:
        """Return what the dashboard shows; `None` where it is not defined."""
        probs, labels = self.window
        if not len(probs):
            return {"examples": 0}
        positives = float(labels.mean())
        return {
            "examples": self.total,
            "auc": auc(probs, labels),
            "loss": float(losses(probs, labels).mean()),
            "loss_ever": self.total_loss / self.total,
            "rate": positives,
            "calibration": float(probs.mean()) / positives if positives else None,
            "drift": None if self._first is None else drift(self._first, histogram(probs)),
        }

    def state(self) -> dict[str, np.ndarray]:
        """Return all of it."""
        return {
            "probs": self._probs,
            "labels": self._labels,
            "totals": np.array([self.total, self.total_loss]),
            "first": np.zeros(0) if self._first is None else self._first,
        }

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Take back what `state` returned."""
        self._probs, self._labels = state["probs"].copy(), state["labels"].copy()
        self.total, self.total_loss = int(state["totals"][0]), float(state["totals"][1])
        self._first = state["first"] if len(state["first"]) else None


def losses(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return log-losses, float32 (N,), nats."""
    probs = np.clip(probs, EPSILON, 1 - EPSILON)
    return -np.where(labels > 0, np.log(probs), np.log1p(-probs))


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the share of pairs in the right order, ties as half; `None` with one kind only."""
    positives = np.sort(scores[labels > 0])
    negatives = np.sort(scores[labels <= 0])
    if not len(positives) or not len(negatives):
        return None
    below = np.searchsorted(negatives, positives, "left").sum(dtype=np.float64)
    upto = np.searchsorted(negatives, positives, "right").sum(dtype=np.float64)
    return float((below + upto) / 2 / len(positives) / len(negatives))


def histogram(probs: np.ndarray) -> np.ndarray:
    """Return the shares of predictions in ranges of the logit, float64 (bins,)."""
    clipped = np.clip(probs.astype(np.float64), EPSILON, 1 - EPSILON)
    logits = np.clip(np.log(clipped / (1 - clipped)), -4.99, 4.99)
    counts = np.bincount(np.floor(logits).astype(int) + NUM_BINS // 2, minlength=NUM_BINS)
    return counts / len(probs)


def drift(before: np.ndarray, now: np.ndarray) -> float:
    """Return the population stability index of two histograms; above 0.2 is usually looked at."""
    before, now = np.maximum(before, 1e-4), np.maximum(now, 1e-4)
    return float(((now - before) * np.log(now / before)).sum())
