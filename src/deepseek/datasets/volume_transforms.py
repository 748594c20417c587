"""The string language of volume transforms: steps joined by `+`.

| step | does | in evaluation |
|---|---|---|
| `orient_SPL` | D, H, W lead there (L or R, P or A, S or I); `SPL` without it | the same |
| `spacing_DxHxW` | resampled to so many mm; as scanned without this step | the same |
| `window_LOW_HIGH` | clipped to LOW..HIGH (of CT: HU), which become 0..1 | the same |
| `zscore` | mean 0 and standard deviation 1 in each channel of each volume | the same |
| `patch_DxHxW` | so many voxels, at random; whole volumes without this step | whole volumes |
| `flip`, `flip_AXES` | each axis, or those of `d`, `h`, `w`, mirrored every second time | nothing |
| `rotate_D` | about each axis by up to D degrees | nothing |
| `scale_S` | smaller or larger by a factor of up to 1 + S | nothing |
| `elastic_V` | bent by up to V voxels | nothing |
| `noise_S` | every second time, noise of a standard deviation of up to S | nothing |
| `gamma_S` | every second time, a power of up to 1 + S either way, in its range | nothing |
| `brightness_S` | every second time, a factor between 1 - S and 1 + S | nothing |

The last six take a probability behind: `elastic_2_0.3` bends three samples of ten.

Whatever the order in which they are written: first geometry, then intensity, then the patch and
what is random. What is turned, scaled and bent is interpolated once, in millimetres.
"""

import re
from dataclasses import dataclass

import numpy as np

from deepseek.datasets.resampling import resampled
from deepseek.datasets.volume import SPACING_LIMITS_MM, Volume, check_orientation
from deepseek.datasets.volume_file import DEFAULT_MAX_VOXELS
from deepseek.errors import ConfigError
from deepseek.registry import did_you_mean

DEFAULT_ORIENTATION = "SPL"
Triple = tuple[float, float, float]
_SIGNED = r"(-?\d+(?:\.\d+)?)"
_FLOAT = r"(\d+(?:\.\d+)?)"
_SIZES = rf"{_FLOAT}x{_FLOAT}x{_FLOAT}"
_AMOUNT = rf"_{_FLOAT}(?:_{_FLOAT})?"

# name -> (how it is written, pattern of its arguments, least and most of a number)
_STEPS: dict[str, tuple[str, str, float, float]] = {
    "orient": ("orient_SPL", r"_([A-Z]{3})", 0, 0),
    "spacing": ("spacing_DxHxW", f"_{_SIZES}", *SPACING_LIMITS_MM),
    "window": ("window_LOW_HIGH", f"_{_SIGNED}_{_SIGNED}", -1e6, 1e6),
    "zscore": ("zscore", "", 0, 0),
    "patch": ("patch_DxHxW", r"_(\d+)x(\d+)x(\d+)", 1, 4096),
    "flip": ("flip or flip_AXES", r"(?:_([dhw]{1,3}))?", 0, 0),
    "rotate": ("rotate_D", _AMOUNT, 0, 180),
    "scale": ("scale_S", _AMOUNT, 0, 4),
    "elastic": ("elastic_V", _AMOUNT, 0, 64),
    "noise": ("noise_S", _AMOUNT, 0, 1e6),
    "gamma": ("gamma_S", _AMOUNT, 0, 8),
    "brightness": ("brightness_S", _AMOUNT, 0, 1),
}
_FIXED = ("orient", "spacing", "window", "zscore")
# name -> how often it is done where no probability is given
_CHANCES = {
    "rotate": 1.0, "scale": 1.0, "elastic": 1.0, "noise": 0.5, "gamma": 0.5, "brightness": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class VolumeTransform:
    """A parsed transform.

    Attributes:
        text: as written, without spaces.
        evaluation: the deterministic part, as text.
        orientation: three letters.
        spacing_mm: along D, H, W; `None`: as scanned.
        window: what becomes 0 and 1; `None`: no window.
        is_zscored: whether each volume gets mean 0 and standard deviation 1.
        patch: voxels along D, H, W; `None`: whole volumes.
        flip_axes: of D, H, W as 0, 1, 2.
        amounts: of the other random steps, by name; 0 where there is none.
        chances: of each of these, 0..1.
    """

    text: str
    evaluation: str
    orientation: str
    spacing_mm: Triple | None
    window: tuple[float, float] | None
    is_zscored: bool
    patch: tuple[int, int, int] | None
    flip_axes: tuple[int, ...]
    amounts: dict[str, float]
    chances: dict[str, float]

    def place(
        self,
        volume: Volume,
        *,
        is_labels: bool = False,
        max_voxels: int = DEFAULT_MAX_VOXELS,
        where: str = "the volume",
    ) -> Volume:
        """Return a volume, or labels, with the orientation and the spacing of the transform.

        Raises:
            DataError: it would be too large.
        """
        volume = volume.reoriented(self.orientation)
        if self.spacing_mm is None:
            return volume
        return resampled(
            volume, self.spacing_mm, is_labels=is_labels, max_voxels=max_voxels, where=where
        )

    def scale_intensity(self, voxels: np.ndarray) -> np.ndarray:
        """Return voxels (C, D, H, W) as a model takes them, float32."""
        voxels = voxels.astype(np.float32)  # always a copy, in a row
        if self.window is not None:
            low, high = self.window
            voxels = (np.clip(voxels, low, high) - low) / np.float32(high - low)
        if self.is_zscored:
            axes = (1, 2, 3)
            mean = voxels.mean(axes, keepdims=True, dtype=np.float64)
            std = voxels.std(axes, keepdims=True, dtype=np.float64)
            voxels = ((voxels - mean) / np.maximum(std, 1e-8)).astype(np.float32)
        return np.ascontiguousarray(voxels)


def parse_volume_transform(text: str) -> VolumeTransform:
    """Read a transform in the string language; "" or "none" is no step at all.

    Raises:
        ConfigError: a step is unknown, written otherwise, or there twice; all of them at once.
    """
    words = [word.strip() for word in text.split("+")] if text.strip() not in ("", "none") else []
    problems: list[str] = []
    found: dict[str, list[str]] = {}
    for word in words:
        parsed = _parse_step(word, problems)
        if parsed is None:
            continue
        name, arguments = parsed
        if name in found:
            problems.append(f"{name} is there twice")
        found[name] = arguments
    numbers = {
        name: [float(argument) for argument in arguments]
        for name, arguments in found.items()
        if name not in ("orient", "flip")
    }
    if "window" in numbers and numbers["window"][0] >= numbers["window"][1]:
        problems.append("window has LOW >= HIGH")
    if problems:
        raise ConfigError(
            f"transform={text!r}: " + "; ".join(problems),
            fix="join steps of this list by '+': "
            + ", ".join(written for written, *_ in _STEPS.values()),
        )
    orientation = found.get("orient", [DEFAULT_ORIENTATION])[0]
    check_orientation(orientation)
    axes = (found["flip"][0:1] or ["dhw"])[0] if "flip" in found else ""
    patch = found.get("patch")
    window, spacing = numbers.get("window"), numbers.get("spacing")
    return VolumeTransform(
        "+".join(words),
        "+".join(word for word in words if word.partition("_")[0] in _FIXED),
        orientation,
        (spacing[0], spacing[1], spacing[2]) if spacing else None,
        (window[0], window[1]) if window else None,
        "zscore" in found,
        (int(patch[0]), int(patch[1]), int(patch[2])) if patch else None,
        tuple(sorted({"dhw".index(axis) for axis in axes})),
        {name: numbers.get(name, [0.0])[0] for name in _CHANCES},
        {name: [*numbers.get(name, [0.0])[1:], chance][0] for name, chance in _CHANCES.items()},
    )


def _parse_step(word: str, problems: list[str]) -> tuple[str, list[str]] | None:
    """Return name and arguments of a step, or add to `problems` and return `None`."""
    name = word.partition("_")[0]
    if name not in _STEPS:
        close = did_you_mean(name, _STEPS)
        problems.append(f"unknown step {word!r}" + (f", {close}" if close[:3] == "did" else ""))
        return None
    written, pattern, least, most = _STEPS[name]
    match = re.fullmatch(pattern, word[len(name) :])
    if match is None:
        problems.append(f"{word!r} is not written as {written}")
        return None
    arguments = [group for group in match.groups() if group is not None]
    if name not in ("orient", "flip"):
        for place, argument in enumerate(arguments):
            low, high = (0, 1) if name in _CHANCES and place == 1 else (least, most)
            if not low <= float(argument) <= high:
                problems.append(f"{argument} in {word!r} is not in {low:g}..{high:g}")
                return None
    return name, arguments
