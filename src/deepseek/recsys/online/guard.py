"""Which examples are kept away from the model: those of loud or lying clients, and absurd ones.

```
capped       the client has more than its share of the window already
flipped      the client's labels are worse predicted than those of all, by a margin
outlier      the model finds the label all but impossible
```
Limits: labels that are flipped by many clients, each a few, are not told from noise; a client that
is new, or few, is believed at first; what changes for good looks like an outlier for a while, and
is let in when a quarter of the window is set aside: then the model is wrong, not the world.
"""

from collections import deque

import numpy as np

from deepseek.recsys.online.settings import GuardSettings

REASONS = ("learnt", "capped", "flipped", "outlier", "malformed")
LEARNT, CAPPED, FLIPPED, OUTLIER, MALFORMED = range(5)
WORLD_CHANGED = 0.25


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
        self._window: deque[tuple[str, float, int]] = deque()
        self._clients: dict[str, list] = {}
        self._loss, self._num_outliers = 0.0, 0

    def judge(self, client: str, loss: float) -> int:
        """Return what becomes of an example: `LEARNT`, or why not.

        Args:
            client: whose it is.
            loss: of the label, before it is learnt, nats.
        """
        settings = self._settings
        loss = min(loss, 2 * settings.outlier_nats)
        verdict = self._verdict(client, loss)
        self.counts[REASONS[verdict]] += 1
        self._remember(client, loss, verdict, 1)
        self._window.append((client, loss, verdict))
        if len(self._window) > settings.window:
            self._remember(*self._window.popleft(), -1)
        return verdict

    def _verdict(self, client: str, loss: float) -> int:
        settings = self._settings
        count, total, _ = self._clients.get(client, (0, 0.0, 0))
        size = len(self._window)
        if len(self._clients) >= settings.min_clients:
            allowed = max(
                settings.client_share * size, settings.client_share * settings.window / 10
            )
            taken = count - self._clients.get(client, (0, 0.0, 0))[2]
            if taken >= allowed:
                return CAPPED
            others = size - count
            if count >= settings.flip_examples and others >= settings.flip_examples:
                mean_of_others = (self._loss - total) / others
                if total / count > mean_of_others + settings.flip_margin:
                    return FLIPPED
        is_usual = self._num_outliers < WORLD_CHANGED * max(size, settings.window // 10)
        if loss > settings.outlier_nats and is_usual:
            return OUTLIER
        return LEARNT

    def _remember(self, client: str, loss: float, verdict: int, sign: int) -> None:
        entry = self._clients.setdefault(client, [0, 0.0, 0])
        entry[0] += sign
        entry[1] += sign * loss
        entry[2] += sign * (verdict == CAPPED)
        self._loss += sign * loss
        self._num_outliers += sign * (verdict == OUTLIER)
        if entry[0] == 0:
            del self._clients[client]

    def loudest(self, count: int = 5) -> list[dict]:
        """Return the clients with most examples in the window."""
        order = sorted(self._clients.items(), key=lambda each: (-each[1][0], each[0]))[:count]
        return [
            {"client": client, "examples": n, "loss": total / n, "capped": capped}
            for client, (n, total, capped) in order
        ]

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        """Return all of it, as arrays and JSON."""
        names = sorted(self._clients)
        numbers = {name: number for number, name in enumerate(names)}
        arrays = {
            "client": np.array([numbers[client] for client, _, _ in self._window], np.int32),
            "loss": np.array([loss for _, loss, _ in self._window]),
            "verdict": np.array([verdict for _, _, verdict in self._window], np.int8),
            # sums of floats depend on the order in which they were made
            "sums": np.array([self._loss, *(self._clients[name][1] for name in names)]),
        }
        return arrays, {"names": names, "counts": self.counts}

    def load(self, arrays: dict[str, np.ndarray], rest: dict) -> None:
        """Take back what `state` returned."""
        names = rest["names"]
        rows = zip(
            arrays["client"].tolist(), arrays["loss"].tolist(), arrays["verdict"].tolist(),
            strict=True,
        )  # fmt: skip
        self._window.clear()
        for number, loss, verdict in rows:
            self._window.append((names[number], loss, verdict))
            self._remember(names[number], loss, verdict, 1)
        self._loss = float(arrays["sums"][0])
        for name, total in zip(names, arrays["sums"][1:].tolist(), strict=True):
            self._clients[name][1] = total
        self.counts = dict(rest["counts"])
