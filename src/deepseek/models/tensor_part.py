"""A part of a tensor, and where in the whole it lies: what ranks save and load.

Written as a key of a safetensors file: `weight` for a whole tensor, `weight#24,0/96,32` for the
part of a tensor (96, 32) that begins at row 24.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

_PART_KEY = re.compile(r"(?P<name>.+)#(?P<offset>[0-9,]*)/(?P<shape>[0-9,]*)", re.S)


class Place(NamedTuple):
    """Where a part lies: the name and shape of the whole, and the first index in each dim."""

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]


@dataclass(frozen=True)
class TensorPart:
    """A box of a tensor that has a name.

    Attributes:
        place: where it lies.
        tensor: the numbers, a view of where they are used.
        is_written: whether this rank saves it, and not another that holds the same.
    """

    place: Place
    tensor: Tensor = field(repr=False)
    is_written: bool = True

    @classmethod
    def whole(cls, name: str, tensor: Tensor, is_written: bool = True) -> "TensorPart":
        """Return all of a tensor as one part."""
        shape = tuple(tensor.shape)
        return cls(Place(name, shape, (0,) * len(shape)), tensor, is_written)

    @property
    def key(self) -> str:
        """The name of the part in a file."""
        name, shape, offset = self.place
        if tuple(self.tensor.shape) == shape:
            return name
        return f"{name}#{_joined(offset)}/{_joined(shape)}"


def place_of(key: str, shape: Sequence[int]) -> Place:
    """Return the place that a key of a file names.

    Args:
        key: as `TensorPart.key` wrote it.
        shape: of the tensor in the file.
    """
    match = _PART_KEY.fullmatch(key)
    if match is None:
        return Place(key, tuple(shape), (0,) * len(shape))
    return Place(match["name"], _split(match["shape"]), _split(match["offset"]))


def overlap(
    place: Place, size: Sequence[int], other: Place, other_size: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Return where two parts of a tensor overlap, as slices of each; `None`: nowhere."""
    mine, theirs = [], []
    for a, n, b, m in zip(place.offset, size, other.offset, other_size, strict=True):
        start, end = max(a, b), min(a + n, b + m)
        if start >= end:
            return None
        mine.append(slice(start - a, end - a))
        theirs.append(slice(start - b, end - b))
    return tuple(mine), tuple(theirs)


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(str(number) for number in numbers)


def _split(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",")) if text else ()
