"""Mean and standard deviation of images, applied on the device, once per batch."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Num
from torch import Tensor
from torch._guards import active_fake_mode

from deepseek.errors import ConfigError


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation, of values in 0..1.

    Args:
        mean: one value a channel.
        std: one value a channel, > 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(
                f"mean has {len(self.mean)} channels, std has {len(self.std)}; both need the same"
                " number, at least 1",
                fix="give one mean and one std for each channel",
            )
        if not all(map(math.isfinite, self.mean)):
            raise ConfigError(f"mean={self.mean} is not finite", fix="give finite means")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise ConfigError(f"std={self.std} has a value that is not > 0", fix="give std > 0")

    def apply(
        self, images: Num[Tensor, "*B C H W"], dtype: torch.dtype = torch.float32
    ) -> Num[Tensor, "*B C H W"]:
        """Return `(images - mean) / std`; the memory format is kept.

        One multiply-add in float32, which reads uint8 directly, then at most one cast.

        Args:
            images: uint8 in 0..255, or floats in 0..1.
            dtype: a floating dtype, of the result.
        """
        if images.ndim < 3 or images.shape[-3] != len(self.mean):
            raise ConfigError(
                f"images of shape {tuple(images.shape)} do not have channels={len(self.mean)}"
                " in dim -3, as this normalization does",
                fix="give images as (C, H, W) or (B, C, H, W) with that number of channels",
            )
        range_ = 255.0 if images.dtype == torch.uint8 else 1.0
        # Traced code must see fresh constants: a cached tensor would be lifted or warned about.
        # On paper they are fake, and must not be kept for real pictures of later.
        is_traced = torch.compiler.is_compiling() or active_fake_mode() is not None
        make = _make_scale_shift if is_traced else _cached_scale_shift
        scale, shift = make(self.mean, self.std, range_, images.device)
        if _is_pixel_by_pixel(images):
            return _apply_to_rows(images, scale, shift).to(dtype)
        return torch.addcmul(shift, images, scale).to(dtype)

    def to_json(self) -> dict:
        """Return a JSON-able dict of two lists."""
        return {"mean": list(self.mean), "std": list(self.std)}


def _is_pixel_by_pixel(images: Tensor) -> bool:
    """Return whether these are decoded pictures, where a CPU's inner loop would be of length C."""
    return (
        images.dtype == torch.uint8
        and images.device.type == "cpu"
        and images.ndim == 4
        and images.stride(1) == 1
        and images.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
    )


def _apply_to_rows(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the same numbers by rows of W x C values: 1.8 ms, not 6.4, for 32 x 224 x 224."""
    width = images.shape[-1]
    rows = images.permute(0, 2, 3, 1).flatten(2).float()
    torch.addcmul(shift.flatten().repeat(width), rows, scale.flatten().repeat(width), out=rows)
    return rows.unflatten(2, (width, -1)).permute(0, 3, 1, 2)


def _make_scale_shift(
    mean: tuple[float, ...], std: tuple[float, ...], range_: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    scale = [1.0 / (range_ * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    return (
        torch.tensor(scale, dtype=torch.float32, device=device).view(-1, 1, 1),
        torch.tensor(shift, dtype=torch.float32, device=device).view(-1, 1, 1),
    )


@lru_cache(maxsize=32)
def _cached_scale_shift(
    mean: tuple[float, ...], std: tuple[float, ...], range_: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    # Cached since making them is a host-to-device copy, which waits for the device.
    # Tensors made in inference mode could not be used in a later training step.
    with torch.inference_mode(False):
        return _make_scale_shift(mean, std, range_, device)
