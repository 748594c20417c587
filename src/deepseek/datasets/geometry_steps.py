"""Steps that move pixels: resize, crop, flip, rotate.

References: random resized crop, Szegedy et al. 2014 (arXiv:1409.4842); area 8 to 100 %, ratio 3/4
to 4/3, as in torchvision, where ten failed tries also fall back to the central crop.
"""

import math

from PIL import Image
from typing_extensions import override

from deepseek.datasets.randomness import Draws
from deepseek.datasets.step import CropResize, Step

Box = tuple[float, float, float, float]


def _central_box(size: tuple[int, int], ratio: float) -> Box:
    """Return the largest central box of width / height = ratio."""
    width, height = size
    box_width, box_height = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


class Resize(CropResize):
    """`resize_N`: shorter side to N, then the central N x N.  `resize_HxW`: exactly H x W."""

    def __init__(self, height: int, width: int | None = None) -> None:
        self._target = (height if width is None else width, height)
        self._is_exact = width is not None

    @override
    def plan(self, size: tuple[int, int], draws: Draws) -> tuple[Box, tuple[int, int]]:
        if self._is_exact:
            return (0, 0, *size), self._target
        return _central_box(size, 1.0), self._target

    @override
    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self._target


class RandomResizedCrop(CropResize):
    """`random_resized_crop_N`: a random part of random area and shape, resized to N x N."""

    is_random = True

    def __init__(self, size: int) -> None:
        self._size = size

    @override
    def plan(self, size: tuple[int, int], draws: Draws) -> tuple[Box, tuple[int, int]]:
        width, height = size
        for _ in range(10):
            area = width * height * draws.uniform(0.08, 1.0)
            ratio = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = draws.integer(0, width - w), draws.integer(0, height - h)
                return (left, top, left + w, top + h), (self._size, self._size)
        ratio = min(max(width / height, 3 / 4), 4 / 3)
        return _central_box(size, ratio), (self._size, self._size)

    @override
    def evaluation(self) -> str:
        return f"resize_{self._size}"

    @override
    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self._size, self._size


class CenterCrop(Step):
    """`center_crop_N`: the central N x N; a smaller picture is padded with black."""

    def __init__(self, size: int) -> None:
        self._size = size

    @override
    def apply(self, image: Image.Image, draws: Draws) -> Image.Image:
        left, top = (image.width - self._size) // 2, (image.height - self._size) // 2
        if left == 0 == top and image.size == (self._size, self._size):
            return image
        return image.crop((left, top, left + self._size, top + self._size))

    @override
    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self._size, self._size


class RandomCrop(Step):
    """`random_crop_N`, `random_crop_N_pad_P`: a random N x N, after P black pixels on each side."""

    is_random = True

    def __init__(self, size: int, pad: int = 0) -> None:
        self._size, self._pad = size, pad

    @override
    def apply(self, image: Image.Image, draws: Draws) -> Image.Image:
        left = self._start(image.width, draws)
        top = self._start(image.height, draws)
        # PIL fills what lies outside with black: padding without a larger image.
        return image.crop((left, top, left + self._size, top + self._size))

    def _start(self, length: int, draws: Draws) -> int:
        low, high = -self._pad, length + self._pad - self._size
        if high < low:  # smaller than the crop even with its padding: centre it
            return (length - self._size) // 2
        return draws.integer(low, high)

    @override
    def evaluation(self) -> str:
        return f"center_crop_{self._size}"

    @override
    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self._size, self._size


class Flip(Step):
    """`hflip`, `vflip`: mirrored, every second time."""

    is_random = True

    def __init__(self, method: Image.Transpose) -> None:
        self._method = method

    @override
    def apply(self, image: Image.Image, draws: Draws) -> Image.Image:
        return image.transpose(self._method) if draws.chance(0.5) else image


class Rotate(Step):
    """`rotate_D`: turned by up to D degrees either way; corners are black."""

    is_random = True

    def __init__(self, degrees: int) -> None:
        self._degrees = degrees

    @override
    def apply(self, image: Image.Image, draws: Draws) -> Image.Image:
        angle = draws.uniform(-self._degrees, self._degrees)
        return image.rotate(angle, Image.Resampling.BILINEAR)
