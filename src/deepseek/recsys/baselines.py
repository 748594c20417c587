"""What costs nothing and is hard to beat: popularity as it moves, and EASE.

Paper: Steck 2019, "Embarrassingly shallow autoencoders for sparse data" (arXiv 1905.03375), eq. 8.

Shapes: U users, I items.
"""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from deepseek.errors import ConfigError, DataError


class Popularity:
    """How often each item is clicked, or of what is shown how much, learnt event by event.

    The score of an item is `(clicked + smoothing * prior) / (shown + smoothing)`, or with
    `by="clicks"` the clicks alone. Older events fade by half in every `half_life_s`.

    Args:
        by: "rate" or "clicks".
        prior: rate of an item that was never shown.
        smoothing: how many times an item must be shown to count as much as the prior.
        half_life_s: `None`: nothing fades.

    Raises:
        ConfigError: a number is out of its range.

    Example:
        >>> popularity = Popularity("clicks")
        >>> popularity.update("a", 1, time=0)
        >>> popularity.scores(["a", "b"], time=1).tolist()
        [1.0, 0.0]
    """

    def __init__(
        self,
        by: str = "rate",
        prior: float = 0.1,
        smoothing: float = 20.0,
        half_life_s: float | None = None,
    ) -> None:
        if by not in ("rate", "clicks"):
            raise ConfigError(f"by={by!r} is neither rate nor clicks", fix="use rate")
        if not smoothing > 0 or (half_life_s is not None and not half_life_s > 0):
            raise ConfigError(
                f"smoothing={smoothing}, half_life_s={half_life_s}: both must be above 0",
                fix="use 20, and None or seconds",
            )
        self.by, self.prior, self.smoothing = by, prior, smoothing
        self.half_life_s = half_life_s
        self._counts: dict[Hashable, tuple[float, float, float]] = {}

    def update(self, item: Hashable, clicked: float, time: float = 0.0) -> None:
        """Take an event: the item was shown, and clicked or not; in any order of time."""
        now = max(time, self._counts.get(item, (time,))[0])
        shown, clicks = self._at(item, now)
        left = self._left(now - time)
        self._counts[item] = (now, shown + left, clicks + left * float(clicked))

    def scores(self, items: Iterable[Hashable], time: float = 0.0) -> np.ndarray:
        """Return the score of each item at a time, by what was before."""
        found = np.array([self._at(item, time) for item in items]).reshape(-1, 2)
        if self.by == "clicks":
            return found[:, 1]
        return (found[:, 1] + self.smoothing * self.prior) / (found[:, 0] + self.smoothing)

    def _at(self, item: Hashable, time: float) -> tuple[float, float]:
        last, shown, clicks = self._counts.get(item, (time, 0.0, 0.0))
        left = self._left(max(time - last, 0.0))
        return shown * left, clicks * left

    def _left(self, age_s: float) -> float:
        """Return what is left of an event of that age."""
        return 1.0 if self.half_life_s is None else 2.0 ** (-age_s / self.half_life_s)


class EASE:
    """A linear model from the items of a user to all items, in closed form.

    `B = I - P / diag(P)` with `P = (X'X + strength)^-1`: no item speaks for itself.

    Args:
        strength: of the regularisation, above 0; grows with the number of users.

    Attributes:
        weights: B, float64 (I, I).
    """

    def __init__(self, strength: float = 250.0) -> None:
        if not strength > 0:
            raise ConfigError(f"strength={strength} is not above 0", fix="use 250")
        self.strength = strength
        self.weights = np.zeros((0, 0))

    def fit(
        self,
        users: Sequence | np.ndarray,
        items: Sequence | np.ndarray,
        num_items: int,
        values: np.ndarray | None = None,
    ):
        """Learn from who met what; returns itself. Takes I^3 operations.

        Args:
            users: numbers from 0, of each event.
            items: numbers from 0 to I - 1.
            num_items: I.
            values: of each event, such as a rating less the mean of its item; by default 1.

        Raises:
            DataError: an item is outside.
        """
        met = self._matrix(np.asarray(users), np.asarray(items), num_items, values)
        inverse = np.linalg.inv(met.T @ met + self.strength * np.eye(num_items))
        self.weights = -inverse / np.diag(inverse)
        np.fill_diagonal(self.weights, 0.0)
        return self

    def scores(
        self,
        users: Sequence | np.ndarray,
        items: Sequence | np.ndarray,
        values: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the score of every item for users from 0 on, who met these items, (U, I)."""
        met = self._matrix(np.asarray(users), np.asarray(items), len(self.weights), values)
        return met @ self.weights

    @staticmethod
    def _matrix(
        users: np.ndarray, items: np.ndarray, num_items: int, values: np.ndarray | None
    ) -> np.ndarray:
        if len(items) and not 0 <= items.min() <= items.max() < num_items:
            raise DataError(
                f"items {items.min()} to {items.max()} of {num_items}", fix="number them from 0"
            )
        met = np.zeros((int(users.max()) + 1 if len(users) else 0, num_items))
        met[users, items] = 1.0 if values is None else values
        return met
