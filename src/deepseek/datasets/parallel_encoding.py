"""Many texts encoded by several threads of this process.

The library releases Python's lock while it works. Its own pool of threads is left alone: it does
not survive the fork of a loader's worker, and says so on the console of every run.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

CHUNK = 256
_SWITCH = "TOKENIZERS_PARALLELISM"


def encode_in_threads(
    backend: Any, texts: Sequence[str], *, add_special_tokens: bool
) -> list[np.ndarray]:
    """Return the tokens of each text, int64, in their order.

    Args:
        backend: of the tokenizers library.
        texts: any number of them.
        add_special_tokens: as the library has it.
    """

    def encode(start: int) -> list[np.ndarray]:
        found = backend.encode_batch_fast(
            texts[start : start + CHUNK], add_special_tokens=add_special_tokens
        )
        return [np.array(encoding.ids, np.int64) for encoding in found]

    starts = range(0, len(texts), CHUNK)
    num_threads = min(len(starts), count_cores())
    with _without_own_pool():
        if num_threads <= 1:
            return [tokens for start in starts for tokens in encode(start)]
        with ThreadPoolExecutor(num_threads) as pool:
            return [tokens for part in pool.map(encode, starts) for tokens in part]


def count_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if os.name == "posix" else os.cpu_count() or 1


@contextmanager
def _without_own_pool() -> Iterator[None]:
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before
