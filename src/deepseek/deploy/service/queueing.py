"""Requests that wait for the models of a version: how many may, how long, and for which one."""

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.served_model import Model


class Queue:
    """Gives requests to models that are alike.

    Args:
        models: that compute.
        max_waiting: samples that may wait, or be computed; more are refused.
    """

    def __init__(self, models: Sequence[Model], *, max_waiting: int) -> None:
        self._models, self._max_waiting = models, max_waiting
        self._given = [0] * len(models)
        self._each_s = 0.0  # of one sample, as measured last

    @property
    def num_waiting(self) -> int:
        """Samples that are not answered yet."""
        return sum(self._given)

    async def submit(self, samples: Sequence[np.ndarray], timeout_s: float) -> np.ndarray:
        """Return a row per sample.

        Args:
            samples: of one request, all of one shape.
            timeout_s: from now; a sample whose time is up is not computed any more.

        Raises:
            Refusal: 413, there could never be room; 429, there is none now; 503, the model has
                gone; 504, it took too long; 500, the model failed.
        """
        if len(samples) > self._max_waiting:
            raise Refusal(
                413, f"{len(samples)} samples, more than the {self._max_waiting} that may wait",
                fix=f"send {self._max_waiting} at most at a time",
            )  # fmt: skip
        if self.num_waiting + len(samples) > self._max_waiting:
            raise Refusal(
                429, f"{self.num_waiting} samples wait already, the limit is {self._max_waiting}",
                fix="send it again later", retry_after_s=max(1.0, self._each_s * self.num_waiting),
            )  # fmt: skip
        at = min(range(len(self._models)), key=self._burden)
        stacked = samples[0][None] if len(samples) == 1 else np.stack(samples)
        self._given[at] += len(samples)
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                rows = await self._models[at].compute(stacked, began + timeout_s)
        except TimeoutError:
            raise Refusal(
                504, f"no answer within {timeout_s:g} s",
                fix="send fewer samples at a time, or serve with a larger --timeout-s",
            ) from None  # fmt: skip
        finally:
            # what was waited for by all, shared by all of them
            self._each_s = (time.monotonic() - began) / self.num_waiting
            self._given[at] -= len(samples)
        return rows

    def _burden(self, at: int) -> tuple[bool, int]:
        """What makes another model the better one for the next request."""
        return not self._models[at].is_up, self._given[at]
