"""Bytes of a stranger's picture -> an 8-bit PIL image in mode L or RGB.

What is declared is checked before anything is decoded: formats that run programs (EPS) are not
opened, and the declared size is held against `max_pixels`. JPEG is decoded at 1/2, 1/4 or 1/8 of
its size where a caller says that so much is enough: libjpeg then skips most of the inverse DCT.
"""

import io
import re

import numpy as np
from PIL import Image

from deepseek.errors import DataError

SUFFIXES = frozenset(
    "jpg jpeg png webp bmp gif tif tiff ppm pgm pbm pnm jp2 avif".split()  # noqa: SIM905
)
# PIL tries these in turn; what is not here (EPS calls Ghostscript) is never touched.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
# Pillow warns above this number of pixels by itself, so that a larger default would be noisy.
DEFAULT_MAX_PIXELS = 89_478_485
_ORIENTATION = 0x0112
# EXIF orientation -> the operation that undoes it.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Picture:
    """A picture whose header has been read, and whose pixels have not.

    Args:
        content: the file's bytes, or pixels: uint8 (H, W) or (H, W, 3).
        where: path or place, for messages.
        max_pixels: width x height above which the picture is refused.

    Raises:
        DataError: if this is not a picture, or it declares too many pixels.
    """

    def __init__(self, content: bytes | np.ndarray, where: str, max_pixels: int) -> None:
        self.where = where
        self._orientation = 1
        if isinstance(content, np.ndarray):
            self._image = Image.fromarray(content)
        else:
            self._image = self._open(content, max_pixels)
        width, height = self._image.size
        if width * height > max_pixels:
            raise _too_large(where, f"{width} x {height} = {width * height}", max_pixels)
        self.size = (height, width) if self._orientation >= 5 else (width, height)

    @property
    def can_reduce(self) -> bool:
        """Whether the picture can be decoded at a fraction of its size."""
        return self._image.format in ("JPEG", "MPO")

    def decode(self, scale: int = 1, *, gray: bool = False) -> Image.Image:
        """Decode.

        Args:
            scale: a JPEG is decoded at 1/scale of its size: 1, 2, 4 or 8.
            gray: the caller wants gray values; a JPEG's colours are then not decoded at all.

        Returns:
            The picture, upright, in mode L or RGB; an RGB where `gray` asks for L is possible.

        Raises:
            DataError: if it is damaged, or of a kind without a defined range.
        """
        image = self._image
        try:
            if self.can_reduce and (scale > 1 or gray):
                reduced = (image.width // scale, image.height // scale)
                image.draft("L" if gray else None, reduced)  # pyright: ignore[reportArgumentType]
            image.load()
            if image.mode not in ("RGB", "L"):
                image = _to_8_bit(image, self.where)
        except DataError:
            raise
        except Exception as error:  # a decoder may fail in any way on a stranger's bytes
            raise _damaged(self.where, error) from error
        if self._orientation != 1:
            image = image.transpose(_UPRIGHT[self._orientation])
        return image

    def _open(self, content: bytes, max_pixels: int) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
            # Reading EXIF costs; a PNG or WebP may carry it too, but only where `info` has it.
            # PIL turns a TIFF itself when it loads it.
            if "exif" in image.info and image.format != "TIFF":
                orientation = image.getexif().get(_ORIENTATION, 1)
                self._orientation = orientation if orientation in _UPRIGHT else 1
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            # PIL has a limit of its own, far above ours in most cases, and looks first
            declared = re.search(r"(\d+) pixels", str(error))
            if declared and int(declared[1]) > max_pixels:
                raise _too_large(self.where, declared[1], max_pixels) from error
            raise DataError(
                f"{self.where}: the picture declares too many pixels: {error}",
                fix="leave the picture out; to read it, raise max_pixels and PIL's"
                " Image.MAX_IMAGE_PIXELS",
            ) from error
        except Exception as error:
            raise _damaged(self.where, error) from error
        return image


def scale_for(box_size: tuple[float, float], target: tuple[int, int], size: tuple[int, int]) -> int:
    """Return the largest of 1, 2, 4, 8 by which a picture can shrink for a resize.

    Args:
        box_size: width and height of the part that will be resized.
        target: width and height that it will have; the shrunk part is never smaller.
        size: width and height of the whole picture.
    """
    factor = min(box_size[0] / target[0], box_size[1] / target[1])
    for scale in (8, 4, 2):
        if factor >= scale and min(size) >= scale:
            return scale
    return 1


def _to_8_bit(image: Image.Image, where: str) -> Image.Image:
    """Convert any mode to L or RGB; transparent pictures are laid on white."""
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        values = np.asarray(image).astype(np.int64)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 0xFFFF:
            raise DataError(
                f"{where}: a 32-bit picture with values in {low}..{high}, whose range is unknown",
                fix="convert the picture to 8 or 16 bits",
            )
        # 65535 / 255 = 257 exactly: rounded, not cut off at 255 as PIL's own convert does.
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if mode == "F":
        raise DataError(
            f"{where}: a floating-point picture, whose range is unknown",
            fix="convert the picture to 8 or 16 bits",
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("L" if mode == "1" else "RGB")


def _too_large(where: str, declared: str, max_pixels: int) -> DataError:
    return DataError(
        f"{where}: the picture declares {declared} pixels, more than max_pixels={max_pixels}",
        fix="leave the picture out, or raise max_pixels if you trust it",
    )


def _damaged(where: str, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    if "cannot identify image file" in reason:
        reason = "it is not a picture in a format that is read here"
    return DataError(
        f"{where}: the picture cannot be read: {reason}",
        fix='remove or replace the file, or set on_bad_sample="skip"',
    )
