"""Steps that change colours, or hide a part.

References: RandAugment, Cubuk et al. 2019 (arXiv:1909.13719); TrivialAugment, Mueller and Hutter
2021 (arXiv:2103.10158), both torchvision's; random erasing, Zhong et al. 2017 (arXiv:1708.04896).
"""

import math

from PIL import Image, ImageEnhance
from typing_extensions import override

from deepseek.datasets.randomness import (
    Draws,
    preserved_global_generators,
    seed_global_generators,
)
from deepseek.datasets.step import Step


class ColorJitter(Step):
    """`color_jitter`, `color_jitter_S`: brightness, contrast, saturation by up to S, hue by S/4."""

    is_random = True

    def __init__(self, strength: float = 0.4) -> None:
        self._strength = strength

    @override
    def apply(self, image: Image.Image, draws: Draws) -> Image.Image:
        enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast]
        if image.mode == "RGB":
            enhancers.append(ImageEnhance.Color)
        start = draws.integer(0, len(enhancers) - 1)  # the order matters: turn it
        for i in range(len(enhancers)):
            enhancer = enhancers[(start + i) % len(enhancers)]
            factor = draws.uniform(max(0.0, 1 - self._strength), 1 + self._strength)
            image = enhancer(image).enhance(factor)
        if image.mode == "RGB":
            image = _turn_hue(image, draws.uniform(-self._strength, self._strength) / 4)
        return image


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = round(turn * 255)
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


class Grayscale(Step):
    """`grayscale`: colours removed; the number of channels stays."""

    @override
    def apply(self, image: Image.Image, draws: Draws) -> Image.Image:
        return image if image.mode == "L" else image.convert("L").convert("RGB")

    @override
    def evaluation(self) -> str:
        return "grayscale"


class Policy(Step):
    """`randaugment_N_M`, `trivialaugment`: torchvision's, under a seed of this sample's own."""

    is_random = True

    def __init__(self, num_ops: int | None = None, magnitude: int = 9) -> None:
        from torchvision.transforms import v2  # costs seconds; only where a policy is asked for

        if num_ops is None:
            self._policy = v2.TrivialAugmentWide()
        else:
            self._policy = v2.RandAugment(num_ops=num_ops, magnitude=magnitude)

    @override
    def apply(self, image: Image.Image, draws: Draws) -> Image.Image:
        with preserved_global_generators():
            seed_global_generators(draws.bits())
            return self._policy(image)


class RandomErasing(Step):
    """`random_erasing_P`: with probability P (0.25), a box is filled with the mean colour."""

    is_random = True

    def __init__(self, probability: float = 0.25, fill: tuple[int, ...] = (124, 116, 104)) -> None:
        self._probability, self._fill = probability, fill

    @override
    def apply(self, image: Image.Image, draws: Draws) -> Image.Image:
        if not draws.chance(self._probability):
            return image
        width, height = image.size
        for _ in range(10):
            area = width * height * draws.uniform(0.02, 1 / 3)
            ratio = math.exp(draws.uniform(math.log(0.3), math.log(3.3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w < width and 0 < h < height:
                left, top = draws.integer(0, width - w), draws.integer(0, height - h)
                fill = self._fill if image.mode == "RGB" else self._fill[0]
                image = image.copy()
                image.paste(fill, (left, top, left + w, top + h))
                break
        return image
