"""Dynamic batching, in the process of a model: what waits meanwhile is computed together next.

Nobody waits for a batch to fill up: a sample that finds the model idle is computed at once, alone.
Under load, batches grow by themselves, up to the size at which a batch is expected to take longer
than the latency target.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

MEMORY = 0.9
"""Weight of what was known of a batch's time before, against the last one measured."""


@dataclass(frozen=True, eq=False)
class Waiting:
    """A sample that waits.

    Attributes:
        request: number of the request that it is of.
        row: its place there.
        sample: as the model takes it.
        expires: on the clock of `time.monotonic`; it is not computed any more from then on.
    """

    request: int
    row: int
    sample: np.ndarray
    expires: float


class BatchClock:
    """How long a batch of a size takes: a line through measured times, `fixed + count * each`.

    Batches measured lately count most.
    """

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # of 1, n, t, n * n, n * t

    def note(self, count: int, seconds: float) -> None:
        """Remember that a batch of `count` samples took `seconds`."""
        new = (1.0, count, seconds, count * count, count * seconds)
        self._sums = [MEMORY * old + value for old, value in zip(self._sums, new, strict=True)]

    def seconds(self, count: int) -> float:
        """Return the time that `count` samples are expected to take; 0 where nothing is known."""
        weight, n, t, nn, nt = self._sums
        if weight == 0:
            return 0.0
        spread = weight * nn - n * n
        if spread < 1e-6 * weight * nn:  # one size only so far: as if all of it were per sample
            return t / n * count
        each = max(0.0, (weight * nt - n * t) / spread)
        return max(0.0, (t - each * n) / weight) + each * count

    def largest(self, target_s: float, limit: int) -> int:
        """Return the largest batch, 1 to `limit`, that is expected to take `target_s` at most."""
        count = limit
        while count > 1 and self.seconds(count) > target_s:
            count = -(-count // 2) if self.seconds(count) > 2 * target_s else count - 1
        return count


class Batcher:
    """Collects samples, from any thread, and hands them out in batches.

    Args:
        max_batch: samples of a batch at most.
        target_s: what a batch should take at most.
        pad: what fills rows of tokens up to the longest of a batch; `None`: rows of one batch have
            one length.
    """

    def __init__(self, *, max_batch: int, target_s: float, pad: int | None = None) -> None:
        self._max_batch, self._target_s, self._pad = max_batch, target_s, pad
        self._waiting: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self.clock = BatchClock()

    def add(self, request: int, samples: np.ndarray, expires: float) -> None:
        """Let the samples (B, ...) of a request wait."""
        with self._changed:
            rows = (Waiting(request, row, each, expires) for row, each in enumerate(samples))
            self._waiting.extend(rows)
            self._changed.notify()

    def close(self) -> None:
        """Say that nothing comes any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def take(self) -> list[Waiting]:
        """Wait for samples; return what waits longest, and those that fit to it behind it.

        Returns:
            The next batch; empty once the batcher is closed.
        """
        with self._changed:
            while not self._is_closed:
                if batch := self._next_batch():
                    return batch
                self._changed.wait()
        return []

    def stack(self, batch: list[Waiting]) -> np.ndarray:
        """Return the samples of a batch as one array (B, ...)."""
        samples = [each.sample for each in batch]
        if len({sample.shape for sample in samples}) == 1:
            return np.stack(samples)
        width = max(map(len, samples))
        fill = [np.full(width - len(sample), self._pad, sample.dtype) for sample in samples]
        return np.stack([np.concatenate(pair) for pair in zip(samples, fill, strict=True)])

    def _next_batch(self) -> list[Waiting]:
        size = self.clock.largest(self._target_s, self._max_batch)
        batch: list[Waiting] = []
        others: list[Waiting] = []
        now = time.monotonic()
        while self._waiting and len(batch) < size:
            entry = self._waiting.popleft()
            if entry.expires <= now:
                continue  # who asked has been told so
            fits = not batch or self._fit(batch[0].sample, entry.sample)
            (batch if fits else others).append(entry)
        self._waiting.extendleft(reversed(others))
        return batch

    def _fit(self, first: np.ndarray, other: np.ndarray) -> bool:
        """Whether two samples can be computed together."""
        if first.dtype != other.dtype:
            return False
        if self._pad is None or first.ndim != 1 or other.ndim != 1:
            return first.shape == other.shape
        # what is filled up by more than half costs more than it saves
        return max(len(first), len(other)) <= 2 * min(len(first), len(other))
