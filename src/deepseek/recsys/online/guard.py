"""Which examples are kept away from the model: those of loud or lying clients, and absurd ones.

```
capped       the client has its share of what was learnt already: `client_share`, or three equal
             parts where that is more, and three standard errors; half of it before its labels
             are known to go with the predictions
flipped      the client's labels are worse predicted than those of the others, by a margin; or they
             go against the predictions, while those of the others go with them
outlier      the model finds the label all but impossible
malformed    the model has no prediction for it: a value is too large
```
With or against is the correlation r of labels and predictions; how surely, says Fisher's
z = atanh(r) (n - 3)^0.5 (1921, "On the probable error of a coefficient of correlation", Metron 1).

Limits: labels that are flipped by many clients, each a few, are not told from noise; a client that
is new, or few, is believed at first, and one whose labels are all alike goes neither with nor
against; where half of what is learnt is a lie, nobody can say which half. What changes for good
looks like an outlier for a while, and is let in when a quarter of the window is set aside: then the
model is wrong, not the world.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from deepseek.recsys.online.recent import EPSILON
from deepseek.recsys.online.settings import GuardSettings

REASONS = ("learnt", "capped", "flipped", "outlier", "malformed")
LEARNT, CAPPED, FLIPPED, OUTLIER, MALFORMED = range(5)
WORLD_CHANGED = 0.25
STEPS = 4096
"""Predictions are counted in such parts: sums of whole numbers are the same in any order."""


@dataclass
class _Sums:
    """Of the examples of a client in the window, or of all."""

    count: int = 0
    loss: float = 0.0
    learnt: int = 0
    capped: int = 0
    clicks: int = 0
    score: int = 0
    squares: int = 0
    products: int = 0

    def add(self, entry: "_Entry", sign: int) -> None:
        self.count += sign
        self.loss += sign * entry.loss
        self.learnt += sign * (entry.verdict == LEARNT)
        self.capped += sign * (entry.verdict == CAPPED)
        self.clicks += sign * entry.value
        self.score += sign * entry.score
        self.squares += sign * entry.score * entry.score
        self.products += sign * entry.score * entry.value

    def without(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.count - other.count, self.loss - other.loss, self.learnt - other.learnt,
            self.capped - other.capped, self.clicks - other.clicks, self.score - other.score,
            self.squares - other.squares, self.products - other.products,
        )  # fmt: skip

    @property
    def agreement(self) -> float:
        """Fisher's z of labels and predictions in standard errors; 0 where it is not defined."""
        n, clicks = self.count, self.clicks
        spread = (n * self.squares - self.score**2) * (n * clicks - clicks**2)
        if n <= 3 or spread <= 0:
            return 0.0
        correlation = (n * self.products - self.score * clicks) / math.sqrt(spread)
        return math.atanh(min(max(correlation, -0.999), 0.999)) * math.sqrt(n - 3)


@dataclass(frozen=True)
class _Entry:
    client: str
    score: int
    value: int
    loss: float
    verdict: int


class Guard:
    """See the module.

    Args:
        settings: limits.

    Attributes:
        counts: examples by what became of them.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self.counts = dict.fromkeys(REASONS, 0)
        self._window: deque[_Entry] = deque()
        self._clients: dict[str, _Sums] = {}
        self._all, self._num_outliers = _Sums(), 0

    def judge(self, client: str, prob: float, value: int) -> int:
        """Return what becomes of an example: `LEARNT`, or why not.

        Args:
            client: whose it is.
            prob: of a 1, before the example is learnt.
            value: its label, 1 or 0.
        """
        settings = self._settings
        if not math.isfinite(prob):  # of no client's loss or agreement can this be a part
            self.counts[REASONS[MALFORMED]] += 1
            return MALFORMED
        loss = -math.log(max(prob if value else 1 - prob, EPSILON))
        loss = min(loss, 2 * settings.outlier_nats)
        verdict = self._verdict(client, loss)
        self.counts[REASONS[verdict]] += 1
        entry = _Entry(client, round(prob * STEPS), value, loss, verdict)
        self._remember(entry, 1)
        self._window.append(entry)
        if len(self._window) > settings.window:
            self._remember(self._window.popleft(), -1)
        return verdict

    def _verdict(self, client: str, loss: float) -> int:
        settings = self._settings
        own = self._clients.get(client)
        if own is not None and len(self._clients) >= settings.min_clients:
            if self._lies(own):
                return FLIPPED
            most = max(settings.client_share, 3 / len(self._clients)) * self._all.learnt
            most *= 1.0 if own.agreement > settings.flip_errors else 0.5
            if own.learnt >= most + 3 * math.sqrt(most):  # less may be chance
                return CAPPED
        is_usual = self._num_outliers < WORLD_CHANGED * max(
            len(self._window), settings.window // 10
        )
        if loss > settings.outlier_nats and is_usual:
            return OUTLIER
        return LEARNT

    def _lies(self, own: _Sums) -> bool:
        settings, others = self._settings, self._all.without(own)
        if min(own.count, others.count) < settings.flip_examples:
            return False
        if own.loss / own.count > others.loss / others.count + settings.flip_margin:
            return True
        limit = settings.flip_errors
        return own.agreement < -limit and others.agreement > limit

    def _remember(self, entry: _Entry, sign: int) -> None:
        sums = self._clients.setdefault(entry.client, _Sums())
        sums.add(entry, sign)
        self._all.add(entry, sign)
        self._num_outliers += sign * (entry.verdict == OUTLIER)
        if sums.count == 0:
            del self._clients[entry.client]

    def loudest(self, count: int = 5) -> list[dict]:
        """Return the clients with most examples in the window, those that lie first."""
        is_many = len(self._clients) >= self._settings.min_clients
        found = [
            {
                "client": client, "examples": each.count, "loss": each.loss / each.count,
                "capped": each.capped, "agreement": each.agreement,
                "is_set_aside": is_many and self._lies(each),
            }
            for client, each in self._clients.items()
        ]  # fmt: skip
        order = sorted(
            found, key=lambda each: (not each["is_set_aside"], -each["examples"], each["client"])
        )
        return order[:count]

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        """Return all of it, as arrays and JSON."""
        names = sorted(self._clients)
        numbers = {name: number for number, name in enumerate(names)}
        window = self._window
        arrays = {
            "client": np.array([numbers[each.client] for each in window], np.int32),
            "score": np.array([each.score for each in window], np.int32),
            "value": np.array([each.value for each in window], np.int8),
            "loss": np.array([each.loss for each in window]),
            "verdict": np.array([each.verdict for each in window], np.int8),
            # sums of floats depend on the order in which they were made
            "sums": np.array([self._all.loss, *(self._clients[name].loss for name in names)]),
        }
        return arrays, {"names": names, "counts": self.counts}

    def load(self, arrays: dict[str, np.ndarray], rest: dict) -> None:
        """Take back what `state` returned."""
        names = rest["names"]
        columns = ("client", "score", "value", "loss", "verdict")
        rows = zip(*(arrays[name].tolist() for name in columns), strict=True)
        for number, score, value, loss, verdict in rows:
            entry = _Entry(names[number], score, value, loss, verdict)
            self._window.append(entry)
            self._remember(entry, 1)
        self._all.loss = float(arrays["sums"][0])
        for name, total in zip(names, arrays["sums"][1:].tolist(), strict=True):
            self._clients[name].loss = total
        self.counts = dict(rest["counts"])
