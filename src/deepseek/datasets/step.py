"""What a step of an image transform is."""

from abc import ABC, abstractmethod

from PIL import Image

from deepseek.datasets.randomness import Draws


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
        return resize_box(image, box, target)


def resize_box(
    image: Image.Image, box: tuple[float, float, float, float], target: tuple[int, int]
) -> Image.Image:
    """Resize a box of an image, bilinear with antialiasing.

    Pixels just outside the box have their share in its edge, as if it were cut out afterwards.
    """
    if target == image.size and box == (0, 0, *image.size):
        return image
    # reducing_gap: a large factor goes through a box filter first; 2.0 is Pillow's advice.
    return image.resize(target, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
