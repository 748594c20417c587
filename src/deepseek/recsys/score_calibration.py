"""Probabilities that mean what they say, from scores and a hold-out of labels.

Papers: Platt 1999, "Probabilistic outputs for support vector machines", section 2.2 with its
targets; Zadrozny & Elkan 2002, "Transforming classifier scores" (KDD; isotonic regression by pool
adjacent violators); Guo et al. 2017, "On calibration" (arXiv 1706.04599), section 4.2
(temperature).

Shapes: N rows.
"""

from collections.abc import Sequence

import numpy as np

from deepseek.errors import ConfigError, DataError

KINDS = ("platt", "isotonic", "temperature")
NUM_STEPS = 100


class ScoreCalibration:
    """A map from logits to probabilities, fitted to labels.

    Args:
        kind: "platt": `sigmoid(a s + b)`; "temperature": `sigmoid(s / t)`; "isotonic": steps that
            never fall, with straight lines between their middles.

    Raises:
        ConfigError: the kind is not known.

    Example:
        >>> fitted = ScoreCalibration("isotonic").fit([-1, 0, 1, 2], [0, 1, 0, 1])
        >>> fitted([-5, 0.5, 9]).tolist()
        [0.0, 0.5, 1.0]
    """

    def __init__(self, kind: str = "platt") -> None:
        if kind not in KINDS:
            raise ConfigError(f"kind={kind!r} is none of {', '.join(KINDS)}", fix="use platt")
        self.kind = kind
        self._slope, self._shift = 1.0, 0.0
        self._at, self._values = np.zeros(0), np.zeros(0)

    def fit(self, logits: Sequence | np.ndarray, labels: Sequence | np.ndarray):
        """Fit to rows that the model was not trained on; returns itself.

        Raises:
            DataError: there are no rows, or the labels are all the same.
        """
        scores, known = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
        if scores.shape != known.shape or not 0 < known.sum() < len(known):
            raise DataError(
                f"{len(scores)} logits and {len(known)} labels, {int(known.sum())} of them 1",
                fix="give as many of both, with both labels",
            )
        if self.kind == "isotonic":
            self._at, self._values = pool_adjacent(scores, known)
            return self
        features = scores[:, None]
        if self.kind == "platt":
            # Platt's targets: a few rows never say that something is certain
            yes, no = known.sum(), len(known) - known.sum()
            known = np.where(known == 1, (yes + 1) / (yes + 2), 1 / (no + 2))
            features = np.stack([scores, np.ones_like(scores)], 1)
        weights = _fit_logistic(features, known)
        self._slope, self._shift = float(weights[0]), float(weights[1:].sum())
        return self

    @property
    def temperature(self) -> float:
        """By what logits are divided."""
        return 1 / self._slope

    def __call__(self, logits: Sequence | np.ndarray) -> np.ndarray:
        """Return probabilities, (N,)."""
        scores = np.asarray(logits, np.float64)
        if self.kind == "isotonic":
            if not len(self._at):
                raise DataError("this calibration was not fitted", fix="call fit first")
            return np.interp(scores, self._at, self._values)
        return _sigmoid(self._slope * scores + self._shift)


def pool_adjacent(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean score and label of each step of the best function that never falls."""
    at, group = np.unique(scores, return_inverse=True)
    sizes = np.bincount(group).astype(np.float64)
    means = np.bincount(group, labels) / sizes
    blocks: list[list[float]] = []  # mean label, mean score, rows
    for place, mean, size in zip(at, means, sizes, strict=True):
        block = [float(mean), float(place), float(size)]
        while blocks and blocks[-1][0] >= block[0]:
            mean_before, place_before, size_before = blocks.pop()
            total = size_before + block[2]
            block = [
                (mean_before * size_before + block[0] * block[2]) / total,
                (place_before * size_before + block[1] * block[2]) / total,
                total,
            ]
        blocks.append(block)
    return np.array([block[1] for block in blocks]), np.array([block[0] for block in blocks])


def _fit_logistic(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the weights of least log-loss, by Newton's method with halved steps."""
    weights = np.zeros(features.shape[1])
    weights[0] = 1.0
    loss = _loss(features @ weights, targets)
    for _ in range(NUM_STEPS):
        probs = _sigmoid(features @ weights)
        slope = features.T @ (probs - targets)
        curve = (features * (probs * (1 - probs))[:, None]).T @ features
        step = np.linalg.solve(curve + 1e-12 * np.eye(len(weights)), slope)
        size = 1.0
        while size > 1e-10 and _loss(features @ (weights - size * step), targets) > loss:
            size /= 2
        moved = weights - size * step
        loss, before = _loss(features @ moved, targets), loss
        weights = moved
        if before - loss < 1e-12 * max(before, 1):
            break
    return weights


def _loss(logits: np.ndarray, targets: np.ndarray) -> float:
    return float((np.logaddexp(0, logits) - targets * logits).sum())


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
