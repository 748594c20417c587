"""Rows of numbers that belong to ids: found, added, given up, moved together.

Row 0 is there from the beginning and belongs to no id. What is given up is used again for the next
id; when little is left, rows move together and the memory goes back.

Shapes: N ids, C rows there is memory for, L ids that have a row, W numbers of a row.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from deepseek.recsys.tables.row_index import RowIndex

_GIVEN_UP = -1
_SLACK = 1.02  # with the slots, memory stays below 1.1 of what rows, ids and times need


class RowStore:
    """Rows by id.

    Args:
        width: W.
        capacity: C to begin with, >= 2; it doubles when there is no room.
        seed: of the hash of ids.

    Attributes:
        ids: (C,), int64.
        values: (C, W), float32.
        used: (C,), int64: when a row was last written, -1 where it is not used.
    """

    def __init__(self, width: int, capacity: int, seed: int) -> None:
        self.ids = torch.zeros(capacity, dtype=torch.int64, device="cpu")
        self.values = torch.zeros(capacity, width, dtype=torch.float32, device="cpu")
        self.used = torch.full((capacity,), _GIVEN_UP, dtype=torch.int64, device="cpu")
        self.used[0] = 0
        self._top, self._seed = 1, seed  # rows from `_top` on were never used
        self._free = torch.zeros(0, dtype=torch.int64, device="cpu")
        self._index = RowIndex(self.ids, seed)

    @property
    def capacity(self) -> int:
        """C."""
        return len(self.ids)

    @property
    def num_ids(self) -> int:
        """L."""
        return self._top - 1 - len(self._free)

    @property
    def nbytes(self) -> int:
        """Memory of all of it."""
        tensors = (self.ids, self.values, self.used, self._free)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors) + self._index.nbytes

    def find(self, ids: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
        """Return the row of each id, int32; 0: it has none."""
        return self._index.find(ids)

    def rows(self) -> Int[Tensor, "L"]:
        """Return the rows that belong to ids, in the order of the ids: the same for any history."""
        rows = (self.used[1 : self._top] != _GIVEN_UP).nonzero()[:, 0] + 1
        return rows[self.ids[rows].argsort()]

    def add(self, ids: Int[Tensor, "N"], now: int) -> Int[Tensor, "N"]:
        """Give rows to different ids that have none; their numbers are whatever was there.

        Args:
            ids: none of them twice.
            now: when they were last used.
        """
        self._make_room(self.num_ids + len(ids) + 1)
        num_again = min(len(ids), len(self._free))
        again, self._free = self._free.tensor_split([num_again])
        num_new = len(ids) - num_again
        new = torch.arange(self._top, self._top + num_new, device="cpu")
        self._top += num_new
        rows = torch.cat([again, new])
        self.ids[rows] = ids
        self.used[rows] = now
        self._index.insert(rows)
        return rows

    def remove(self, rows: Int[Tensor, "N"]) -> None:
        """Give up rows, and memory where that saves a fiftieth of it."""
        if not len(rows):
            return
        self.used[rows] = _GIVEN_UP
        self._free = torch.cat([self._free, rows])
        if self.capacity > (self.num_ids + 1) * _SLACK:
            self._move_together()
        self._index_anew()

    def _make_room(self, num_rows: int) -> None:
        capacity = self.capacity
        if num_rows <= capacity:
            return
        while capacity < num_rows:
            capacity *= 2
        self._resize(capacity)
        self._index_anew()

    def _move_together(self) -> None:
        """Fill the rows given up with the last ones, and let go of what is behind."""
        self._free = self._free[:0].clone()
        is_used = self.used != _GIVEN_UP
        end = int(is_used.sum())
        holes = (~is_used[1:end]).nonzero()[:, 0] + 1
        last = is_used[end:].nonzero()[:, 0] + end
        for tensor in (self.ids, self.values, self.used):
            tensor[holes] = tensor[last]
        self._top = end
        self._resize(max(2, end))

    def _resize(self, capacity: int) -> None:
        old = self.capacity
        for tensor in (self.ids, self.values, self.used):
            tensor.resize_(capacity, *tensor.shape[1:])
            if capacity < old:  # else done, and a second copy would be made
                tensor.untyped_storage().resize_(tensor.nbytes)
        self.used[old:] = _GIVEN_UP

    def _index_anew(self) -> None:
        self._index = RowIndex(self.ids, self._seed)
        self._index.insert((self.used[1 : self._top] != _GIVEN_UP).nonzero()[:, 0] + 1)
