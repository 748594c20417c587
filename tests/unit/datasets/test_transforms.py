import io

import numpy as np
import pytest
from PIL import Image

from deepseek.datasets.picture import DEFAULT_MAX_PIXELS, Picture
from deepseek.datasets.randomness import Draws
from deepseek.datasets.transforms import IMAGENET, parse_transform
from deepseek.errors import ConfigError

from .conftest import draw
from .test_picture import encode

EVERY_STEP = [
    "resize_24",
    "resize_20x28",
    "center_crop_24",
    "random_crop_24",
    "random_crop_24_pad_3",
    "random_resized_crop_24",
    "hflip",
    "vflip",
    "rotate_30",
    "color_jitter",
    "color_jitter_0.2",
    "randaugment",
    "randaugment_1_5",
    "trivialaugment",
    "random_erasing",
    "random_erasing_1.0",
    "grayscale",
    "normalize_half",
]


def run(text: str, content, channels: int = 3, parts=(0, 0, 0)) -> np.ndarray:
    transform = parse_transform(text, channels)
    picture = Picture(content, "here", DEFAULT_MAX_PIXELS)
    draws = Draws(*parts)
    image, done = transform.start(picture, draws)
    image = transform.run(image, draws, int(done), len(transform.steps))
    return np.asarray(image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("step", EVERY_STEP)
def test_every_step_keeps_its_contract(step, channels):
    content = encode(draw(0, 60, 44), "JPEG")
    first = run(step, content, channels, (1, 2, 3))
    assert first.dtype == np.uint8
    assert first.ndim == (2 if channels == 1 else 3)
    # Same draws, same pixels; the promised size is the size.
    assert np.array_equal(first, run(step, content, channels, (1, 2, 3)))
    size = (60, 44)
    transform = parse_transform(step, channels)
    for part in transform.steps:
        size = part.output_size(size)
    assert first.shape[:2] == (size[1], size[0])
    # The evaluation part is deterministic, keeps the size, and is its own evaluation part.
    evaluation = parse_transform(transform.evaluation, channels)
    assert evaluation.num_fixed == len(evaluation.steps)
    assert evaluation.evaluation == transform.evaluation
    assert evaluation.normalization == transform.normalization
    assert run(transform.evaluation, content, channels).shape == first.shape
    if any(part.is_random for part in transform.steps):
        seen = {run(step, content, channels, (1, 2, i)).tobytes() for i in range(60)}
        assert len(seen) > 1


def test_evaluation_of_a_chain():
    text = (
        "random_resized_crop_32 + hflip+color_jitter+randaugment_2_9+random_erasing+normalize_half"
    )
    assert parse_transform(text, 3).evaluation == "resize_32+normalize_half"
    assert parse_transform("random_crop_32_pad_4+hflip", 3).evaluation == "center_crop_32"


def test_resize_takes_the_central_square():
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, 27:63] = 200  # the filter reaches a little beyond the square
    assert run("resize_10", pixels).min() == 200
    assert run("resize_10", pixels).shape == (10, 10, 3)
    assert run("resize_10x30", pixels).shape == (10, 30, 3)
    assert run("resize_10x30", pixels)[5, 0, 0] == 0


def test_center_crop_pads_a_smaller_picture():
    found = run("center_crop_6", np.full((4, 4), 9, np.uint8), channels=1)
    assert found.sum() == 16 * 9
    assert found[1:5, 1:5].sum() == 16 * 9


def test_random_crop_reaches_every_place():
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    corners = {int(run("random_crop_6", pixels, 1, (0, 0, i))[0, 0]) for i in range(200)}
    assert corners == {8 * y + x for y in range(3) for x in range(3)}
    padded = [run("random_crop_8_pad_1", pixels, 1, (0, 0, i)) for i in range(200)]
    assert len({crop.tobytes() for crop in padded}) == 9


def test_flip_is_every_second_time():
    pixels = np.arange(4, dtype=np.uint8).reshape(1, 4)
    flipped = sum(int(run("hflip", pixels, 1, (0, 0, i))[0, 0]) == 3 for i in range(1000))
    assert 430 < flipped < 570  # four standard deviations


def test_erasing_fills_with_the_mean_color():
    found = run("random_erasing_1.0", np.zeros((40, 40, 3), np.uint8))
    assert {tuple(pixel) for pixel in found.reshape(-1, 3).tolist()} == {(0, 0, 0), (124, 116, 104)}


def test_grayscale_keeps_channels():
    found = run("grayscale", encode(draw(1)))
    assert np.array_equal(found[..., 0], found[..., 2])


def test_default_normalization_follows_channels():
    assert parse_transform("resize_8", 3).normalization == IMAGENET
    assert parse_transform("resize_8", 1).normalization.mean == (0.5,)
    assert parse_transform("resize_8+normalize_none", 3).normalization is None
    with pytest.raises(ConfigError, match="channels=1"):
        parse_transform("normalize_imagenet", 1)


@pytest.mark.parametrize("step", ["resize_224", "random_resized_crop_224"])
def test_reduced_decoding_is_close_to_full_decoding(step):
    picture = draw(5, 1024, 768)
    jpeg = encode(picture, "JPEG", quality=92)
    full = encode(Image.open(io.BytesIO(jpeg)))  # the same pixels, as PNG
    for i in range(5):
        reduced, exact = run(step, jpeg, 3, (0, 0, i)), run(step, full, 3, (0, 0, i))
        assert reduced.shape == exact.shape == (224, 224, 3)
        error = reduced.astype(float) - exact
        assert (error**2).mean() < 255**2 / 10**3.8  # 38 dB
        assert np.abs(error).mean() < 2


def test_reduced_decoding_of_photographs(real_data):
    files = sorted((real_data / "hymenoptera" / "val").rglob("*.jpg"))[::15]
    for file in files:
        picture = Image.open(file).convert("RGB")
        picture = picture.resize((picture.width * 3, picture.height * 3), Image.Resampling.BICUBIC)
        jpeg = encode(picture, "JPEG", quality=90)
        exact = run("resize_224", encode(Image.open(io.BytesIO(jpeg))))
        error = run("resize_224", jpeg).astype(float) - exact
        assert np.abs(error).mean() < 2.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rezise_224", 'did you mean "resize"'),
        ("resize_224+hflop", "unknown step 'hflop', did you mean \"hflip\""),
        ("resize", "'resize' is not written as resize_N or resize_HxW"),
        ("resize_0", "0 in 'resize_0' is not in 1..16384"),
        ("resize_99999", "99999 in"),
        ("random_erasing_1.5", "1.5 in"),
        ("hflip_3", "'hflip_3' is not written as hflip"),
        ("normalize_imgnet", "normalize_imagenet"),
        ("normalize_half+normalize_none", "normalises twice"),
        ("resize_8++hflip", "unknown step ''"),
    ],
)
def test_mistakes_are_explained(text, expected):
    with pytest.raises(ConfigError) as caught:
        parse_transform(text, 3)
    assert expected in str(caught.value)


def test_all_mistakes_at_once():
    with pytest.raises(ConfigError, match=r"hflop.*resize_0") as caught:
        parse_transform("hflop+resize_0", 3)
    assert "random_resized_crop_N" in str(caught.value)
