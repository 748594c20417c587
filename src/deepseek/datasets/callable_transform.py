"""A Python callable as transform: torchvision's objects, or any function of a PIL image."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepseek.datasets.randomness import (
    derive_key,
    preserved_global_generators,
    seed_global_generators,
)
from deepseek.errors import DataError


@dataclass(frozen=True)
class CallableTransform:
    """Calls a function under a seed of the sample's own, and makes its result a tensor.

    Args:
        function: PIL image (mode RGB or L) -> tensor (C, H, W), array (H, W, C) or PIL image.
        channels: 3 or 1, of the image that the function gets.
    """

    function: Callable
    channels: int

    def __call__(self, image: Image.Image, *parts: int) -> Tensor:
        """Return the tensor (C, H, W) for a sample; its randomness depends on `parts` alone."""
        with preserved_global_generators():
            seed_global_generators(derive_key(*parts))
            result = self.function(image)
        if isinstance(result, Image.Image):
            result = np.array(result)
        if isinstance(result, np.ndarray):
            return to_tensor(result if result.flags.writeable else result.copy())
        if not isinstance(result, Tensor):
            raise DataError(
                f"transform={self.function!r} returned a {type(result).__name__}",
                fix="return a tensor (C, H, W), an array (H, W, C) or a PIL image",
            )
        return result.as_subclass(torch.Tensor)  # torchvision's own subclasses do not collate


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Return pixels (H, W) or (H, W, C) as a tensor (C, H, W), without a copy."""
    tensor = torch.from_numpy(pixels)
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)
