"""What a step of an image transform is."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from PIL import Image

from deepseek.datasets.randomness import Draws

# Below this many pixels a call into torch costs more than it saves.
_MIN_PIXELS_FOR_TORCH = 96 * 96


class Step(ABC):
    """One step of a transform: PIL image (mode L or RGB) -> PIL image, same mode."""

    is_random = False

    @abstractmethod
    def apply(self, image: Image.Image, draws: Draws) -> Image.Image:
        """Return the changed image; every random choice comes from `draws`."""

    def evaluation(self) -> str | None:
        """Return the deterministic step, as text, that stands for a random one; None: no step."""
        return None

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) made from this one."""
        return size


class CropResize(Step):
    """A step that cuts out a box and resizes it, in one pass over the pixels.

    Such a step can say before decoding which pixels it needs, so that a JPEG is decoded at reduced
    size.
    """

    @abstractmethod
    def plan(
        self, size: tuple[int, int], draws: Draws
    ) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
        """Return the box (left, top, right, bottom) and the (width, height) that it becomes."""

    def apply(self, image: Image.Image, draws: Draws) -> Image.Image:
        """Cut out and resize."""
        box, target = self.plan(image.size, draws)
        resized = resize_box(image, box, target)
        return Image.fromarray(resized) if isinstance(resized, np.ndarray) else resized


def resize_box(
    image: Image.Image, box: tuple[float, float, float, float], target: tuple[int, int]
) -> Image.Image | np.ndarray:
    """Resize a box of an image, bilinear with antialiasing.

    Photographs go through torch, whose filter for bytes is vectorised: from 500 x 375 to 224
    pixels 0.35 ms instead of 0.9 ms by Pillow (one core of an AMD EPYC). It takes whole pixels, so
    that the box moves by half a pixel at the most, as in torchvision's central crop.

    Returns:
        The image; or, from torch, its pixels (H, W, 3) uint8.
    """
    if target == image.size and box == (0, 0, *image.size):
        return image
    if image.mode != "RGB" or (box[2] - box[0]) * (box[3] - box[1]) < _MIN_PIXELS_FOR_TORCH:
        # reducing_gap: a large factor goes through a box filter first; 2.0 is Pillow's advice.
        return image.resize(target, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    left, top = round(box[0]), round(box[1])
    right = min(left + round(box[2] - box[0]), image.width)
    bottom = min(top + round(box[3] - box[1]), image.height)
    whole = (left, top, right, bottom)
    if whole != (0, 0, *image.size):
        image = image.crop(whole)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # channels-last, as it lies
    resized = torch.nn.functional.interpolate(
        pixels, (target[1], target[0]), mode="bilinear", antialias=True
    )
    return resized[0].permute(1, 2, 0).numpy()
