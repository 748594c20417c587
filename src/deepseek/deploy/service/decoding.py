"""Pictures of strangers are decoded in processes of their own, with limits.

A picture that takes too long or too much memory ends its process, and no other: the pool is made
anew, and what else was being decoded is decoded again.
"""

import asyncio
import multiprocessing
import resource
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import torch
from torch import Tensor

from deepseek.datasets import DataSpec
from deepseek.deploy.service.refusal import Refusal
from deepseek.errors import DeepSeekError
from deepseek.models.prediction import decode_picture

MAX_BYTES = 1 << 30
"""Memory that a process may add to what it has after its start."""
_spec: DataSpec | None = None
_seconds = 0.0


class Decoder:
    """Turns the bytes of pictures into what a model takes.

    Args:
        spec: of the model: how its pictures are prepared.
        num_processes: that decode at a time.
        max_pixels: of a picture.
        timeout_s: for one picture.
    """

    def __init__(
        self, spec: DataSpec, *, num_processes: int, max_pixels: int, timeout_s: float
    ) -> None:
        self._spec, self._num_processes = spec, num_processes
        self._max_pixels, self._timeout_s = max_pixels, timeout_s
        self._pool: ProcessPoolExecutor | None = None

    async def decode(self, content: bytes) -> Tensor:
        """Return a picture as a uint8 tensor (C, H, W).

        Raises:
            Refusal: 400, it is no picture, or a damaged or too large one; 422, it ended the
                process that decoded it.
        """
        for _ in range(2):  # once more where another picture has ended the process
            pool = self._pool = self._pool or self._new_pool()
            try:
                found = await asyncio.wrap_future(pool.submit(_decode, content, self._max_pixels))
            except BrokenProcessPool:
                if self._pool is pool:
                    self._pool = None
                    pool.shutdown(wait=False, cancel_futures=True)
                continue
            if isinstance(found, str):
                raise Refusal(400, found, fix="send a JPEG, PNG or WebP picture")
            return torch.from_numpy(found)
        raise Refusal(
            422, f"the picture could not be decoded within {self._timeout_s:g} s and"
            f" {MAX_BYTES >> 20} MiB", fix="send a smaller picture",
        )  # fmt: skip

    def close(self) -> None:
        """End the processes, once they are done."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._num_processes,
            mp_context=multiprocessing.get_context("forkserver"),
            initializer=_begin,
            initargs=(self._spec, self._timeout_s),
        )


def _begin(spec: DataSpec, timeout_s: float) -> None:
    global _spec, _seconds  # of a process that does nothing else
    _spec, _seconds = spec, timeout_s
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service ends it
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, whatever it is at
    now = _data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (now + MAX_BYTES, now + MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _data_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[5]) * resource.getpagesize()


def _decode(content: bytes, max_pixels: int) -> np.ndarray | str:
    """Return the pixels, or what is wrong: an error of ours might not survive the way back."""
    if _spec is None:
        return "the process has not been told how pictures are prepared"
    signal.setitimer(signal.ITIMER_REAL, _seconds)
    try:
        return decode_picture(content, "the picture", _spec, max_pixels).numpy()
    except DeepSeekError as error:
        return error.message
    except MemoryError:
        return f"the picture needs more than {MAX_BYTES >> 20} MiB"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
