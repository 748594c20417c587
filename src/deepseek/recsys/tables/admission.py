"""How often an id was seen, in a fixed memory: which ids get a row of their own.

Paper: Cormode & Muthukrishnan 2005, "An improved data stream summary: the count-min sketch"
(J. Algorithms 55). A count is never too small; ids that meet in every line make it too large, so an
id may come in early, never late.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from deepseek.recsys.tables.mixing import STEP, mix

_NUM_LINES = 4


class SeenCounts:
    """Counts of ids that have no row yet.

    Args:
        num_counters: of each of 4 lines; 4 bytes each. About as many as ids wait at a time.
        seed: of the hashes.

    Attributes:
        counters: (4, `num_counters`), int32.
    """

    def __init__(self, num_counters: int, seed: int) -> None:
        self.counters = torch.zeros(_NUM_LINES, num_counters, dtype=torch.int32, device="cpu")
        self._seed = seed

    def add(self, ids: Int[Tensor, "N"], times: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
        """Count different ids, each so many times, and return how often each was seen by now."""
        num_counters = self.counters.shape[1]
        hashes = mix(ids ^ self._seed)
        lines = torch.arange(1, _NUM_LINES + 1, device="cpu")[:, None]
        places = ((mix(hashes + lines * STEP) >> 33) & 0x7FFF_FFFF).mul_(num_counters) >> 31
        self.counters.scatter_add_(1, places, times.int().expand(_NUM_LINES, -1))
        return self.counters.gather(1, places).amin(0)

    def age(self) -> None:
        """Halve the counts, so that what was seen long ago weighs less."""
        self.counters >>= 1
