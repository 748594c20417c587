"""Decoded pictures kept in memory, where the whole set of them is small."""

import mmap

import numpy as np

LIMIT_BYTES = 256 * 2**20


class PixelCache:
    """Room for one array of the same shape for each picture.

    The memory is anonymous and shared: worker processes made by fork fill it for each other. Pages
    that are not written cost nothing. After pickling (workers made by spawn) a copy starts empty.

    Args:
        num_pictures: how many there are.
        shape: of each picture's pixels, uint8; a picture of another shape is not kept.
    """

    def __init__(self, num_pictures: int, shape: tuple[int, ...]) -> None:
        self.num_pictures, self.shape = num_pictures, shape
        self._pixels = _shared_zeros((num_pictures, *shape))
        self._is_kept = _shared_zeros((num_pictures,))

    def __reduce__(self):
        return PixelCache, (self.num_pictures, self.shape)

    def get(self, row: int) -> np.ndarray | None:
        """Return the pixels of a picture, or None if they are not kept; not to be written to."""
        return self._pixels[row] if self._is_kept[row] else None

    def get_many(self, rows: np.ndarray) -> np.ndarray | None:
        """Return a copy of the pixels of several pictures, or None if one is not kept."""
        return self._pixels[rows] if self._is_kept[rows].all() else None

    def put(self, row: int, pixels: np.ndarray) -> None:
        """Keep the pixels of a picture, if they have the shape."""
        if pixels.shape == self.shape:
            self._pixels[row] = pixels
            self._is_kept[row] = 1  # after the pixels: another worker may look at any time


def fits(num_pictures: int, shape: tuple[int, ...]) -> bool:
    """Tell whether so many pictures of this shape are small enough to be kept."""
    return 0 < num_pictures * int(np.prod(shape)) <= LIMIT_BYTES


def _shared_zeros(shape: tuple[int, ...]) -> np.ndarray:
    # Not torch's shared memory: /dev/shm is 64 MB in a container, and a write beyond it kills.
    return np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)
