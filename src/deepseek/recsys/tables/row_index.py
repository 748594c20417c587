"""Which row an id has: open addressing with linear probing, a whole batch at a time.

A slot holds a row, 4 bytes, and the ids stand by row: look-ups go on for those of a batch that have
met another id's slot, and fewer are left each time. Nothing is deleted in place: an index is built
anew when rows are given up. A slot of 0 is empty, and row 0 is nobody's own, so that what is not
found has row 0 at once.

Shapes: N ids, C rows, H slots.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from deepseek.recsys.tables.mixing import mix

SLOTS_PER_ROW = 1.5
"""An id that is there is found after 2 probes on average, with 6 bytes a row."""
_MOST_SLOTS = 32


class RowIndex:
    """The rows of ids, which are any int64 numbers.

    Args:
        ids: by row, (C,); kept, not copied. That of row 0 does not count.
        seed: of the hash: whoever does not know it cannot make ids that meet in one slot.
    """

    def __init__(self, ids: Int[Tensor, "C"], seed: int) -> None:
        self._ids, self._seed = ids, seed
        num_slots = int(len(ids) * SLOTS_PER_ROW) + 1
        self._slots = torch.zeros(num_slots, dtype=torch.int32, device="cpu")

    @property
    def nbytes(self) -> int:
        """Memory of the slots."""
        return self._slots.nbytes

    def find(self, ids: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
        """Return the row of each id, int32; 0: it has none."""
        slots = self._first_slots(ids)
        rows = self._slots.index_select(0, slots)
        is_other = self._ids.index_select(0, rows) != ids
        left = is_other.logical_and_(rows != 0).nonzero()[:, 0]
        places, ids, slots = left, ids[left], slots[left]
        while len(places):
            # the fewer are left, the more slots of each are looked at: rounds are few
            num = min(len(rows) // len(places), _MOST_SLOTS, len(self._slots))
            ahead = slots[:, None] + torch.arange(1, num + 1)
            ahead -= (ahead >= len(self._slots)) * len(self._slots)
            found = self._slots.index_select(0, ahead.view(-1))
            keys = self._ids.index_select(0, found)
            found = found.view_as(ahead)
            ends = (keys.view_as(ahead) == ids[:, None]).logical_or_(found == 0)
            rows[places] = found.gather(1, ends.byte().argmax(1, keepdim=True))[:, 0]
            left = (~ends.any(1)).nonzero()[:, 0]
            places, ids, slots = places[left], ids[left], ahead[left, -1]
        return rows

    def insert(self, rows: Int[Tensor, "N"]) -> None:
        """Let the ids of some rows be found; there is room, none of them is there, none twice.

        Args:
            rows: int64, 1 or more.
        """
        slots = self._first_slots(self._ids.index_select(0, rows))
        rows = rows.int()
        written = self._slots.numpy()  # where several write to one slot, numpy's last one stays
        while len(rows):
            is_free = self._slots.index_select(0, slots) == 0
            written[slots[is_free].numpy()] = rows[is_free].numpy()
            left = (self._slots.index_select(0, slots) != rows).nonzero()[:, 0]
            rows, slots = rows[left], self._next(slots[left])

    def _first_slots(self, ids: Tensor) -> Tensor:
        # the upper 31 bits, as a share of all slots
        return ((mix(ids ^ self._seed) >> 33) & 0x7FFF_FFFF).mul_(len(self._slots)) >> 31

    def _next(self, slots: Tensor) -> Tensor:
        after = slots + 1
        return after.masked_fill_(after == len(self._slots), 0)
