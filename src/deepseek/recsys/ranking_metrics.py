"""How good scores are: of all rows, inside each user, and at the top of a list.

Shapes: N rows, U users, I items, K candidates.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from deepseek.datasets.randomness import uniforms
from deepseek.errors import ConfigError, DataError

EPSILON = 1e-15


def area_under_curve(scores: Sequence | np.ndarray, labels: Sequence | np.ndarray) -> float:
    """Return the chance that a 1 has a higher score than a 0, exactly; equal scores count half.

    Args:
        scores: (N,).
        labels: 1 or 0, (N,).

    Returns:
        The area in 0..1; NaN where one of the labels is missing.

    Example:
        >>> area_under_curve([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
        0.875
    """
    given, known = _rows(scores, labels)
    num_yes = int(known.sum())
    num_no = len(known) - num_yes
    if not num_yes or not num_no:
        return float("nan")
    _, group, sizes = np.unique(given, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    return float((ranks[known].sum() - num_yes * (num_yes + 1) / 2) / (num_yes * num_no))


def grouped_area(
    scores: Sequence | np.ndarray, labels: Sequence | np.ndarray, groups: Sequence | np.ndarray
) -> float:
    """Return the mean area under the curve inside groups, by their rows (GAUC).

    Groups with one label only do not count. Paper: Zhu et al. 2017, "Optimized cost per click"
    (arXiv 1703.02091), eq. 8.

    Args:
        scores: (N,).
        labels: 1 or 0, (N,).
        groups: the user of each row, (N,).

    Example:
        >>> grouped_area([1, 2, 3, 1, 5], [0, 1, 0, 0, 1], ["a", "a", "a", "b", "b"])
        0.7
    """
    given, known = _rows(scores, labels)
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(numbers))[:-1])
    found = [(area_under_curve(given[part], known[part]), len(part)) for part in parts]
    counted = [(area, size) for area, size in found if area == area]
    total = sum(size for _, size in counted)
    return sum(area * size for area, size in counted) / total if total else float("nan")


def log_loss(probs: Sequence | np.ndarray, labels: Sequence | np.ndarray) -> float:
    """Return the mean of `-log p` of what was, in nats.

    Args:
        probs: of 1, (N,); kept 1e-15 away from 0 and 1.
        labels: 1 or 0, (N,).
    """
    given, known = _rows(probs, labels)
    clipped = np.clip(given, EPSILON, 1 - EPSILON)
    return float(-np.where(known, np.log(clipped), np.log1p(-clipped)).mean())


def top_metrics(
    scores: np.ndarray,
    right: Sequence | np.ndarray,
    cutoffs: Sequence[int] = (10,),
    *,
    seen: Sequence[Sequence[int]] | None = None,
    num_sampled: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return HR@k and NDCG@k of one right item a user, among all items or among drawn ones.

    The names say which: `hr@10.full`, `ndcg@10.sampled_100`. Sampled ones are higher and may order
    models otherwise (Krichene and Rendle 2020, "On sampled metrics", KDD): do not compare them with
    full ones. Items with the score of the right one stand half before it.

    Args:
        scores: of every item for every user, (U, I).
        right: the item that came, (U,).
        cutoffs: k.
        seen: items of each user that are no candidates, such as those of training.
        num_sampled: how many others are drawn for each user, without replacement; `None`: all.
        seed: of the draw.

    Raises:
        DataError: a user has fewer other items than are to be drawn, or a score is not a number.
    """
    scores, right = np.asarray(scores, np.float64), np.asarray(right)
    suffix = "full" if num_sampled is None else f"sampled_{num_sampled}"
    places = np.empty(len(scores))
    for user, (row, item) in enumerate(zip(scores, right, strict=True)):
        if np.isnan(row).any():  # above and below nothing, which would be the first place
            raise DataError(
                f"a score of user {user} is not a number",
                fix="look at the model: its weights or inputs are not finite",
            )
        is_other = np.ones(len(row), bool)
        if seen is not None:
            is_other[np.asarray(seen[user], np.int64)] = False
        is_other[item] = False
        others = is_other.nonzero()[0]
        if num_sampled is not None:
            if len(others) < num_sampled:
                raise DataError(
                    f"user {user} has {len(others)} other items, and {num_sampled} are to be drawn",
                    fix="draw fewer, or rank all",
                )
            order = np.argsort(uniforms(len(others), seed, user), kind="stable")
            others = others[order[:num_sampled]]
        above, same = (row[others] > row[item]).sum(), (row[others] == row[item]).sum()
        places[user] = above + same / 2
    found = {}
    for k in cutoffs:
        hits = places < k
        found[f"hr@{k}.{suffix}"] = float(hits.mean())
        found[f"ndcg@{k}.{suffix}"] = float((hits / np.log2(places + 2)).mean())
    return found


def list_ndcg(scores: np.ndarray, relevance: np.ndarray, k: int) -> np.ndarray:
    """Return the NDCG@k of lists with several good items, (U,); NaN without any.

    `DCG = sum (2^relevance - 1) / log2(place + 1)`; equal scores keep their order.

    Args:
        scores: (U, K).
        relevance: 0 or more, (U, K).
        k: places that count.
    """
    gains = 2.0 ** np.asarray(relevance, np.float64) - 1
    k = min(k, gains.shape[1])
    discounts = 1 / np.log2(np.arange(k) + 2)
    order = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]
    reached = (np.take_along_axis(gains, order, 1) * discounts).sum(1)
    best = (-np.sort(-gains, axis=1)[:, :k] * discounts).sum(1)
    return np.divide(reached, best, out=np.full(len(best), np.nan), where=best > 0)


class Prequential:
    """Metrics of a stream in which every row is first predicted and then learnt from.

    Paper: Gama et al. 2013, "On evaluating stream learning algorithms" (Machine Learning 90),
    section 4: windows, and means that fade.

    Args:
        window: rows of a window.
        fading: by which older rows count less with each new one, 0..1; 1: all alike.

    Raises:
        ConfigError: a number is out of its range.

    Example:
        >>> stream = Prequential(window=4)
        >>> stream.add([0.9, 0.2, 0.8, 0.1, 0.3], [1, 0, 1, 0, 1])
        >>> stream.windows("auc")
        [1.0]
    """

    def __init__(self, window: int = 1000, fading: float = 0.999) -> None:
        if window < 1 or not 0 < fading <= 1:
            raise ConfigError(
                f"window={window}, fading={fading}: a window has rows, and 0 < fading <= 1",
                fix="use 1000 and 0.999",
            )
        self.window, self.fading = window, fading
        self._probs: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._faded = np.zeros(2)

    def add(self, probs: Sequence | np.ndarray, labels: Sequence | np.ndarray) -> None:
        """Take rows in their order: what was predicted before their labels were known."""
        given, known = _rows(probs, labels)
        self._probs.append(given)
        self._labels.append(known)
        clipped = np.clip(given, EPSILON, 1 - EPSILON)
        losses = -np.where(known, np.log(clipped), np.log1p(-clipped))
        weights = self.fading ** np.arange(len(losses) - 1, -1, -1)
        self._faded = self._faded * self.fading ** len(losses) + [losses @ weights, weights.sum()]

    def windows(self, metric: str = "auc") -> list[float]:
        """Return "auc" or "log_loss" of each full window, the oldest first."""
        probs, labels, measure = *self._all(), _measure(metric)
        size = self.window
        return [
            measure(probs[at : at + size], labels[at : at + size])
            for at in range(0, len(probs) - size + 1, size)
        ]

    def values(self) -> Mapping[str, float]:
        """Return `auc` and `log_loss` of all rows, of the newest window, and the faded loss."""
        probs, labels = self._all()
        found = {}
        for name in ("auc", "log_loss"):
            measure = _measure(name)
            found[name] = measure(probs, labels)
            found[f"{name}.window"] = measure(probs[-self.window :], labels[-self.window :])
        found["log_loss.faded"] = float(self._faded[0] / self._faded[1])
        return found

    def _all(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._probs:
            raise DataError("no rows were added", fix="call add first")
        self._probs = [np.concatenate(self._probs)]
        self._labels = [np.concatenate(self._labels)]
        return self._probs[0], self._labels[0]


def _measure(name: str):
    known = {"auc": area_under_curve, "log_loss": log_loss}
    if name not in known:
        raise ConfigError(f"metric={name!r} is not known", fix="use auc or log_loss")
    return known[name]


def _rows(
    scores: Sequence | np.ndarray, labels: Sequence | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    given, known = np.asarray(scores, np.float64), np.asarray(labels)
    if given.shape != known.shape or given.ndim != 1 or len(given) == 0:
        raise DataError(
            f"scores {given.shape} for labels {known.shape}", fix="give one score a label, or more"
        )
    if np.isnan(given).any() or not np.isin(known, (0, 1)).all():
        raise DataError("scores must be numbers, labels 0 or 1", fix="leave other rows out")
    return given, known.astype(bool)
