"""The string language of image transforms: steps joined by `+`, such as `resize_224+hflip`.

| step | does | in evaluation |
|---|---|---|
| `resize_N` | shorter side to N, central N x N | the same |
| `resize_HxW` | exactly H x W, whatever the shape | the same |
| `center_crop_N` | central N x N, padded with black where smaller | the same |
| `random_crop_N_pad_P` | random N x N, after P (0) black pixels a side | `center_crop_N` |
| `random_resized_crop_N` | random part, resized to N x N | `resize_N` |
| `hflip`, `vflip` | mirrored every second time | nothing |
| `rotate_D` | turned by up to D degrees | nothing |
| `color_jitter_S` | brightness, contrast, saturation by S (0.4), hue by S/4 | nothing |
| `randaugment_N_M` (2, 9), `trivialaugment` | an augmentation policy | nothing |
| `random_erasing_P` | with probability P (0.25) a box in the mean colour | nothing |
| `grayscale` | colours removed | the same |
| `normalize_imagenet`, `_half`, `_none` | recorded, applied on the device | the same |

A number in brackets is used where the argument is left out.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deepseek.datasets import color_steps, geometry_steps
from deepseek.datasets.normalization import Normalization
from deepseek.datasets.picture import Picture, scale_for
from deepseek.datasets.randomness import Draws
from deepseek.datasets.step import CropResize, Step, resize_box
from deepseek.errors import ConfigError
from deepseek.registry import did_you_mean

_MAX_SIZE = 16_384
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_INT = r"(\d+)"
_FLOAT = r"(\d+(?:\.\d+)?)"

# name -> (how it is written, pattern of its arguments, factory from the arguments)
_STEPS: dict[str, tuple[str, str, Callable[..., Step]]] = {
    "resize": ("resize_N or resize_HxW", rf"_{_INT}(?:x{_INT})?", geometry_steps.Resize),
    "center_crop": ("center_crop_N", f"_{_INT}", geometry_steps.CenterCrop),
    "random_crop": (
        "random_crop_N or random_crop_N_pad_P",
        rf"_{_INT}(?:_pad_{_INT})?",
        geometry_steps.RandomCrop,
    ),
    "random_resized_crop": (
        "random_resized_crop_N",
        f"_{_INT}",
        geometry_steps.RandomResizedCrop,
    ),
    "hflip": (
        "hflip",
        "",
        lambda: geometry_steps.Flip(Image.Transpose.FLIP_LEFT_RIGHT),
    ),
    "vflip": (
        "vflip",
        "",
        lambda: geometry_steps.Flip(Image.Transpose.FLIP_TOP_BOTTOM),
    ),
    "rotate": ("rotate_D", f"_{_INT}", geometry_steps.Rotate),
    "color_jitter": ("color_jitter or color_jitter_S", f"(?:_{_FLOAT})?", color_steps.ColorJitter),
    "randaugment": (
        "randaugment or randaugment_N_M",
        f"(?:_{_INT}_{_INT})?",
        lambda num_ops=2, magnitude=9: color_steps.Policy(num_ops, magnitude),
    ),
    "trivialaugment": ("trivialaugment", "", color_steps.Policy),
    "random_erasing": (
        "random_erasing or random_erasing_P",
        f"(?:_{_FLOAT})?",
        color_steps.RandomErasing,
    ),
    "grayscale": ("grayscale", "", color_steps.Grayscale),
}
# Arguments outside these are a slip, and some would only show as an error deep inside a worker.
_UPPER = {"random_erasing": 1.0, "color_jitter": 1.0, "rotate": 180, "randaugment": 30}
_NORMALIZE = ("normalize_imagenet", "normalize_half", "normalize_none")


@dataclass(frozen=True)
class Transform:
    """A parsed transform.

    Args:
        text: as written, without spaces.
        steps: in order, the normalisation left out.
        channels: 3 or 1, of the result.
        normalization: what the spec records.
        evaluation: the deterministic part, as text.
    """

    text: str
    steps: tuple[Step, ...]
    channels: int
    normalization: Normalization | None
    evaluation: str

    @property
    def num_fixed(self) -> int:
        """Number of leading steps that are not random: their result may be kept."""
        for i, step in enumerate(self.steps):
            if step.is_random:
                return i
        return len(self.steps)

    def start(self, picture: Picture, draws: Draws) -> tuple[Image.Image | np.ndarray, bool]:
        """Decode, and apply the first step where it says which pixels it needs.

        Returns:
            The image in the mode of `channels`, or its pixels, and whether the first step is done.
        """
        first = self.steps[0] if self.steps else None
        is_gray = self.channels == 1
        # A random box of a picture that cannot shrink while decoding gains nothing here, and the
        # decoded picture can be kept for the next epoch.
        if not isinstance(first, CropResize) or (first.is_random and not picture.can_reduce):
            return self.to_channels(picture.decode(gray=is_gray)), False
        box, target = first.plan(picture.size, draws)
        scale = 1
        if picture.can_reduce:
            scale = scale_for((box[2] - box[0], box[3] - box[1]), target, picture.size)
        image = picture.decode(scale, gray=is_gray)
        if scale > 1:
            # By the scale itself: the decoder rounds the size up, and its last pixel is a part.
            left, top, right, bottom = (edge / scale for edge in box)
            box = (left, top, min(right, image.width), min(bottom, image.height))
        # Resized before it becomes RGB: a gray picture is a third of the work.
        return self.to_channels(resize_box(image, box, target)), True

    def run(
        self, image: Image.Image | np.ndarray, draws: Draws, first: int, last: int
    ) -> Image.Image | np.ndarray:
        """Apply the steps `first` to `last - 1`, to an image or its pixels."""
        if isinstance(image, np.ndarray):
            if first >= last:
                return image
            image = Image.fromarray(image)
        for step in self.steps[first:last]:
            image = step.apply(image, draws)
        return image

    def to_channels(self, image: Image.Image | np.ndarray) -> Image.Image | np.ndarray:
        """Return the image in mode L or RGB, as `channels` says."""
        if isinstance(image, np.ndarray):
            if self.channels == 3:
                return image
            image = Image.fromarray(image)
        mode = "L" if self.channels == 1 else "RGB"
        return image if image.mode == mode else image.convert(mode)


def parse_transform(text: str, channels: int) -> Transform:
    """Read a transform in the string language; "" or "none" is no step at all.

    Raises:
        ConfigError: if a step is unknown, or its arguments are; every problem is named at once.
    """
    words = [word.strip() for word in text.split("+")] if text.strip() not in ("", "none") else []
    named = [word for word in words if word.startswith("normalize")]
    if len(named) > 1:
        raise ConfigError(
            f"transform={text!r} normalises twice: {', '.join(named)}", fix="keep one of them"
        )
    normalization = make_normalization(named[0] if named else None, channels, text)
    problems: list[str] = []
    steps: list[Step] = []
    evaluation: list[str] = []
    for word in words:
        if word.startswith("normalize"):
            evaluation.append(word)
            continue
        step = _parse_step(word, normalization, problems)
        if step is not None:
            steps.append(step)
            part = step.evaluation() if step.is_random else word
            if part is not None:
                evaluation.append(part)
    if problems:
        raise ConfigError(
            f"transform={text!r}: " + "; ".join(problems),
            fix="join steps of this list by '+': "
            + ", ".join([written for written, _, _ in _STEPS.values()] + list(_NORMALIZE)),
            see="docs/errors.md#config",
        )
    return Transform("+".join(words), tuple(steps), channels, normalization, "+".join(evaluation))


def make_normalization(name: str | None, channels: int, text: str = "") -> Normalization | None:
    """Return a normalisation by the name of its step; None: the default for this many channels."""
    if name is None:
        name = "normalize_imagenet" if channels == 3 else "normalize_half"
    if name == "normalize_none":
        return None
    if name == "normalize_half":
        return Normalization((0.5,) * channels, (0.5,) * channels)
    if name != "normalize_imagenet":
        raise ConfigError(
            f"transform={text!r}: unknown step {name!r}", fix=did_you_mean(name, _NORMALIZE)
        )
    if channels != 3:
        raise ConfigError(
            f"transform={text!r} normalises 3 colours, but channels={channels}",
            fix="write normalize_half, or set channels=3",
        )
    return IMAGENET


def _parse_step(word: str, normalization: Normalization | None, problems: list[str]) -> Step | None:
    """Return the step, or add to `problems` and return None."""
    starting = [name for name in _STEPS if word == name or word.startswith(f"{name}_")]
    if not starting:
        close = did_you_mean(re.sub(r"_\d.*", "", word), [*_STEPS, *_NORMALIZE])
        hint = f", {close}" if close.startswith("did") else ""
        problems.append(f"unknown step {word!r}{hint}")
        return None
    name = max(starting, key=len)
    written, pattern, factory = _STEPS[name]
    match = re.fullmatch(pattern, word[len(name) :])
    if match is None:
        problems.append(f"{word!r} is not written as {written}")
        return None
    numbers = [
        float(group) if "." in group or name in ("random_erasing", "color_jitter") else int(group)
        for group in match.groups()
        if group is not None
    ]
    return _build(name, word, numbers, factory, normalization, problems)


def _build(
    name: str,
    word: str,
    numbers: Sequence[float],
    factory: Callable[..., Step],
    normalization: Normalization | None,
    problems: list[str],
) -> Step | None:
    upper = _UPPER.get(name, _MAX_SIZE)
    lower = 0 if name in ("random_erasing", "color_jitter", "randaugment", "rotate") else 1
    limits = [lower] * len(numbers)
    if name == "random_crop" and len(numbers) == 2:
        limits[1] = 0  # no padding is a padding
    for number, low in zip(numbers, limits, strict=True):
        if not low <= number <= upper:
            problems.append(f"{number} in {word!r} is not in {low}..{upper}")
            return None
    if name == "random_erasing" and normalization is not None:
        fill = tuple(round(255 * mean) for mean in normalization.mean)
        return color_steps.RandomErasing(*numbers, fill=fill)
    return factory(*numbers)
