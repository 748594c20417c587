"""Slates of what a user met, put in order by a model: how often the first one was clicked.

The global AUC of a model is for the most part the user's own bias; inside a slate of one user only
the items differ. A slate is `size` events of a user that follow each other.

Shapes: N events, S slates, K events of a slate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deepseek.errors import ConfigError, DataError
from deepseek.recsys.ranking_metrics import list_ndcg
from deepseek.trainer.bootstrap import Interval, bootstrap_interval


def cut_slates(users: Sequence | np.ndarray, size: int = 10) -> np.ndarray:
    """Return the events of each slate, int64 (S, K), in the order in which slates begin.

    Args:
        users: of each event, in the order of time, (N,).
        size: events of a slate; what is left over at the end of a user is in none.

    Example:
        >>> cut_slates(["a", "b", "a", "a", "b"], size=2).tolist()
        [[0, 2], [1, 4]]
    """
    if size < 2:
        raise ConfigError(f"size={size}: a slate has two events or more", fix="use 10")
    _, numbers = np.unique(np.asarray(users), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(numbers))[:-1])
    found = [part[: len(part) // size * size].reshape(-1, size) for part in parts]
    slates = np.concatenate(found)
    return slates[np.argsort(slates[:, 0], kind="stable")]


@dataclass(frozen=True)
class Replay:
    """What orders of the same slates would have reached.

    Attributes:
        clicks: name -> CTR@k of each slate, (S,).
        ndcg: name -> NDCG@10 of each slate, (S,); NaN without a click.
        users: of each slate, (S,).
    """

    clicks: Mapping[str, np.ndarray]
    ndcg: Mapping[str, np.ndarray]
    users: np.ndarray

    def click_rate(self, name: str, num_rounds: int = 1000, seed: int = 0) -> Interval:
        """Return the CTR@k of an order, its interval drawn by user."""
        rows = self.clicks[name]
        return bootstrap_interval(rows, groups=list(self.users), num_rounds=num_rounds, seed=seed)

    def mean_ndcg(self, name: str) -> float:
        """Return the mean NDCG@10 over slates with a click."""
        return float(np.nanmean(self.ndcg[name]))

    def lift(self, name: str, over: str, num_rounds: int = 1000, seed: int = 0) -> Interval:
        """Return the CTR@k of one order divided by that of another, less 1, drawn by user.

        Both orders are of the same slates in every draw.
        """
        rows = np.stack([self.clicks[name], self.clicks[over]], 1)
        return bootstrap_interval(
            rows, lambda part: part[:, 0].mean() / max(part[:, 1].mean(), 1e-12) - 1,
            groups=list(self.users), num_rounds=num_rounds, seed=seed,
        )  # fmt: skip


def replay_slates(
    scores: Mapping[str, np.ndarray],
    clicked: np.ndarray,
    users: Sequence | np.ndarray,
    k: int = 1,
) -> Replay:
    """Return what each order would have reached; `random`, the mean of a slate, is added.

    Where scores are equal at the edge, CTR@k is the mean over their orders.

    Args:
        scores: name -> score of each event of each slate, (S, K).
        clicked: 1 or 0, (S, K).
        users: of each slate, (S,).
        k: events at the top that count.

    Raises:
        DataError: shapes differ.
    """
    clicked, users = np.asarray(clicked, np.float64), np.asarray(users)
    if not 1 <= k <= clicked.shape[1]:
        raise ConfigError(f"k={k} of slates of {clicked.shape[1]}", fix="use 1")
    clicks, ndcg = {"random": clicked.mean(1)}, {}
    for name, given in scores.items():
        values = np.asarray(given, np.float64)
        if values.shape != clicked.shape or len(users) != len(clicked):
            raise DataError(
                f"{name}: scores {values.shape} for clicks {clicked.shape} of {len(users)} users",
                fix="give a score for each event of each slate",
            )
        edge = -np.sort(-values, axis=1)[:, k - 1 : k]
        above, tied = values > edge, values == edge
        share = (k - above.sum(1)) / tied.sum(1)
        clicks[name] = ((clicked * above).sum(1) + share * (clicked * tied).sum(1)) / k
        ndcg[name] = list_ndcg(values, clicked, 10)
    return Replay(clicks, ndcg, users)
