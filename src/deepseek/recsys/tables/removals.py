"""Which ids a table gave up lately, and when: what a copy of it has to give up, too."""

import torch
from torch import Tensor

_MIN_KEPT = 1024


class Removals:
    """Ids given up since some time.

    Attributes:
        complete_from: what was given up at this time or later is known.
    """

    def __init__(self, complete_from: int = 0) -> None:
        self.complete_from = complete_from
        self._entries: list[tuple[int, Tensor]] = []

    def note(self, now: int, ids: Tensor, max_kept: int) -> None:
        """Write down what is given up now, and forget the oldest beyond `max_kept` ids."""
        self._entries.append((now, ids))
        num_kept = sum(len(each) for _, each in self._entries)
        while num_kept > max(_MIN_KEPT, max_kept):
            time, oldest = self._entries.pop(0)
            num_kept -= len(oldest)
            self.complete_from = time + 1

    def since(self, time: int) -> Tensor:
        """Return the ids given up at `time` or later; some of them may be back."""
        found = [ids for when, ids in self._entries if when >= time]
        return torch.cat([*found, torch.zeros(0, dtype=torch.int64)]).unique()
