"""Dynamic batching: what waits while the model computes is computed together next.

Nobody waits for a batch to fill up: a request that finds the model idle is computed at once, alone.
Under load, batches grow by themselves, up to the size at which a batch is expected to take longer
than the latency target.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepseek.deploy.service.refusal import Refusal

MEMORY = 0.9
"""Weight of what was known of a batch's time before, against the last one measured."""


@dataclass(eq=False)
class _Waiting:
    sample: Tensor
    expires: float
    result: asyncio.Future = field(repr=False)


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
    """Collects samples and has them computed in batches, one batch at a time.

    Args:
        compute: batch (B, ...) -> rows (B, ...); called in a thread of its own.
        max_batch: samples of a batch at most.
        target_s: what a batch should take at most.
        max_waiting: samples that may wait; more are refused.
        on_batch: told the size of each batch and the seconds that it took.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        *,
        max_batch: int,
        target_s: float,
        max_waiting: int,
        on_batch: Callable[[int, float], None] = lambda count, seconds: None,
    ) -> None:
        self._compute = compute
        self._max_batch, self._target_s, self._max_waiting = max_batch, target_s, max_waiting
        self._on_batch = on_batch
        self._waiting: deque[_Waiting] = deque()
        self._clock = BatchClock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._worker: asyncio.Task | None = None

    @property
    def num_waiting(self) -> int:
        """Samples that are not being computed yet."""
        return len(self._waiting)

    async def submit(self, samples: list[Tensor], timeout_s: float) -> list[Tensor]:
        """Return a row per sample.

        Args:
            samples: of one request, all of one shape.
            timeout_s: from now; a sample whose time is up is not computed any more.

        Raises:
            Refusal: 429, there is no room; 504, it took too long; 500, the model failed.
        """
        if self.num_waiting + len(samples) > self._max_waiting:
            wait_s = self._clock.seconds(self._max_batch) * self.num_waiting / self._max_batch
            raise Refusal(
                429, f"{self.num_waiting} samples wait already, the limit is {self._max_waiting}",
                fix="send it again later", retry_after_s=max(1.0, wait_s),
            )  # fmt: skip
        loop, expires = asyncio.get_running_loop(), time.monotonic() + timeout_s
        entries = [_Waiting(sample, expires, loop.create_future()) for sample in samples]
        self._waiting.extend(entries)
        if self._worker is None:
            self._worker = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(timeout_s):
                return list(await asyncio.gather(*(entry.result for entry in entries)))
        except TimeoutError:
            raise Refusal(
                504, f"no answer within {timeout_s:g} s", fix="send fewer samples at a time"
            ) from None
        finally:
            for entry in entries:
                entry.result.cancel()

    async def finish(self) -> None:
        """Compute what waits. Who comes later, with a model that has been replaced, is served too.

        The thread ends with the last reference.
        """
        if self._worker is not None:
            await self._worker

    async def _run(self) -> None:
        """Work until nothing waits."""
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            began = time.perf_counter()
            try:
                rows = await loop.run_in_executor(self._thread, self._compute_rows, batch)
            except Exception as error:  # any model may do anything; the service stays
                for entry in batch:
                    if not entry.result.done():
                        entry.result.set_exception(_failed(error))
                continue
            seconds = time.perf_counter() - began
            self._clock.note(len(batch), seconds)
            self._on_batch(len(batch), seconds)
            for entry, row in zip(batch, rows, strict=True):
                if not entry.result.done():
                    entry.result.set_result(row)
        self._worker = None

    def _next_batch(self) -> list[_Waiting]:
        """Take what waits longest, and those of its shape behind it."""
        size = self._clock.largest(self._target_s, self._max_batch)
        batch: list[_Waiting] = []
        others: list[_Waiting] = []
        now = time.monotonic()
        while self._waiting and len(batch) < size:
            entry = self._waiting.popleft()
            if entry.result.done() or entry.expires <= now:
                continue  # who asked has gone
            fits = not batch or (
                entry.sample.shape == batch[0].sample.shape
                and entry.sample.dtype == batch[0].sample.dtype
            )
            (batch if fits else others).append(entry)
        self._waiting.extendleft(reversed(others))
        return batch

    def _compute_rows(self, batch: list[_Waiting]) -> list[Tensor]:
        return list(self._compute(torch.stack([entry.sample for entry in batch])))


def _failed(error: Exception) -> Refusal:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return Refusal(500, f"the model failed: {said}", fix="see the log of the service")
