import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from deepseek.datasets.picture import _UPRIGHT as UPRIGHT
from deepseek.datasets.picture import DEFAULT_MAX_PIXELS, Picture, scale_for
from deepseek.errors import DataError

from .conftest import draw


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(content, **options) -> Image.Image:
    return Picture(content, "here.png", DEFAULT_MAX_PIXELS).decode(**options)


def test_gray_and_color_are_kept():
    picture = draw(0)
    assert np.array_equal(read(encode(picture)), picture)
    assert np.array_equal(read(encode(picture.convert("L"))), picture.convert("L"))


def test_bilevel_becomes_gray():
    picture = draw(0).convert("1")
    assert np.array_equal(read(encode(picture)), picture.convert("L"))


def test_palette_becomes_its_colors():
    picture = draw(0).quantize(200)
    assert np.array_equal(read(encode(picture)), picture.convert("RGB"))


def test_cmyk_becomes_rgb():
    picture = draw(0)
    found = read(encode(picture.convert("CMYK"), "JPEG", quality=98))
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found, float) - np.asarray(picture, float)).mean() < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_is_laid_on_white(mode):
    picture = draw(0).convert(mode)
    picture.putalpha(0)
    assert np.asarray(read(encode(picture))).min() == 255
    picture.putalpha(255)
    expected = picture.convert("RGB")
    assert np.array_equal(read(encode(picture)), expected)


def test_transparent_palette_is_laid_on_white():
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([10, 20, 30])
    assert np.asarray(read(encode(picture, transparency=0))).min() == 255


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(kind):
    values = np.array([[0, 128, 257, 1000, 32768, 65535]], np.uint16)
    found = np.asarray(read(encode(Image.fromarray(values), kind)))
    assert found.dtype == np.uint8
    assert found.tolist() == np.round(values / 257).astype(int).tolist()


def test_floating_point_has_no_range():
    with pytest.raises(DataError, match="floating-point"):
        read(encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation, kind):
    picture = draw(1, 64, 48)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(picture, kind, exif=exif)
    upright = Picture(content, "here", DEFAULT_MAX_PIXELS)
    found = upright.decode()
    assert found.size == upright.size == ((64, 48) if orientation < 5 else (48, 64))
    stored = Image.open(io.BytesIO(encode(picture, kind)))  # as it lies in the file
    assert np.array_equal(
        found, stored if orientation == 1 else stored.transpose(UPRIGHT[orientation])
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_is_an_error_with_its_path(kind):
    content = encode(draw(2, 200, 150), kind)
    with pytest.raises(DataError, match=r"here\.png: the picture cannot be read") as caught:
        read(content[: len(content) // 2])
    assert caught.value.fix
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "content", [b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"]
)
def test_what_is_no_picture_is_an_error(content):
    with pytest.raises(DataError, match="not a picture in a format that is read"):
        read(content)


def bomb(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [10_000, 100_000])
def test_a_bomb_is_refused_before_decoding(side):
    with pytest.raises(DataError, match="declares"):
        Picture(bomb(side, side), "here.png", DEFAULT_MAX_PIXELS)


def test_max_pixels_is_the_limit():
    content = encode(draw(0, 40, 30))
    Picture(content, "here.png", 1200)
    with pytest.raises(DataError, match="40 x 30 = 1200 pixels, more than max_pixels=1199"):
        Picture(content, "here.png", 1199)


def test_reduced_jpeg_has_the_fraction_of_the_size():
    content = encode(draw(3, 203, 101), "JPEG")
    for scale in (1, 2, 4, 8):
        found = read(content, scale=scale)
        assert found.size == (-(-203 // scale), -(-101 // scale))


def test_scale_never_goes_below_the_target():
    for side in range(10, 2000, 7):
        scale = scale_for((side, side), (224, 224), (side, side))
        assert scale == 1 or side / scale >= 224


def test_gray_jpeg_close_to_gray_of_color():
    content = encode(draw(4, 120, 90), "JPEG", quality=95)
    found = read(content, gray=True)
    assert found.mode == "L"
    expected = read(content).convert("L")
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 2
