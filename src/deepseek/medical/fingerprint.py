"""What a set of volumes is like: spacings, sizes, intensities, classes.

Paper: Isensee et al. 2021 (nnU-Net), Nature Methods 18, 203-211, supplementary note 2: the data set
fingerprint. Departures: nothing is cropped; of many volumes some are read, evenly over the set.

Shapes: N volumes, K classes; D slices, H rows, W columns, as `SPL` has them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepseek.datasets.volume_file import DEFAULT_MAX_VOXELS, read_volume
from deepseek.datasets.volume_source import VolumePair, find_volumes, name_classes
from deepseek.datasets.volume_store import laid_on, read_labels
from deepseek.datasets.volume_transforms import DEFAULT_ORIENTATION
from deepseek.errors import ConfigError, DataError

DEFAULT_MAX_VOLUMES = 100
VOXELS_PER_VOLUME = 10_000
"""Of the classes, whose intensities are remembered."""
AIR_HU = -500.0
"""CT has voxels below this, whatever is scanned; no other scanner's numbers are negative there."""
LARGEST_HU = 32_767.0
_PERCENTILES = (0.5, 50.0, 99.5)


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What was measured.

    Attributes:
        path: of the set.
        num_volumes: in it, read or not.
        spacings_mm: of those read, along D, H, W: (N, 3).
        shapes: likewise, in voxels: (N, 3).
        channels: of each volume.
        modality: `ct` (every channel in Hounsfield units) or `other` (numbers without a unit: MRI,
            PET, ...).
        low, median, high: percentiles 0.5, 50 and 99.5 of the first channel within the classes.
        class_names: the background first.
        class_ml: mean size of each class but the background where it is there, in millilitres.
        class_shares: of the volumes, in which each class but the background is.
    """

    path: str
    num_volumes: int
    spacings_mm: np.ndarray
    shapes: np.ndarray
    channels: int
    modality: str
    low: float
    median: float
    high: float
    class_names: tuple[str, ...]
    class_ml: tuple[float, ...]
    class_shares: tuple[float, ...]

    def describe(self) -> str:
        """Return all of it in a few lines."""
        spacing, shape = np.median(self.spacings_mm, 0), np.median(self.shapes, 0)
        lines = [
            f"{self.num_volumes} volumes, {len(self.shapes)} read; {self.channels} channel(s),"
            f" {'CT (HU)' if self.modality == 'ct' else 'no unit of intensity'}",
            f"median spacing {_x(spacing)} mm ({_range(self.spacings_mm)})",
            f"median size {_x(shape)} voxels ({_range(self.shapes)})",
            f"intensity within the classes: {self.low:g} .. {self.median:g} .. {self.high:g}"
            " (0.5, 50 and 99.5 %)",
        ]
        for name, ml, share in zip(
            self.class_names[1:], self.class_ml, self.class_shares, strict=True
        ):
            lines.append(f"{name}: {ml:.3g} ml on average, in {share:.0%} of the volumes")
        return "\n".join(lines)


def take_fingerprint(
    path: str | os.PathLike,
    *,
    class_names: Sequence[str] | None = None,
    max_volumes: int = DEFAULT_MAX_VOLUMES,
    max_voxels: int = DEFAULT_MAX_VOXELS,
) -> Fingerprint:
    """Read volumes and their labels, one at a time, and return what they are like.

    Args:
        path: as `VolumeDataset` takes it.
        class_names: likewise.
        max_volumes: to read.
        max_voxels: of a volume; a file that declares more is refused unread.

    Raises:
        DataError: a volume or its labels cannot be used, or there is no class in any.
        ConfigError: `max_volumes` is below 1.
    """
    if max_volumes < 1:
        raise ConfigError(f"max_volumes={max_volumes} is below 1", fix="give 1 or more")
    source = find_volumes(path)
    count = len(source.pairs)
    chosen = np.unique(np.linspace(0, count - 1, min(count, max_volumes)).round().astype(int))
    looks = [_look(source.pairs[number], number, max_voxels) for number in chosen.tolist()]
    sizes = [look.class_ml for look in looks]
    labels = {label for each in sizes for label in each}
    if not labels and count == len(looks):
        raise DataError(
            f"{path}: no voxel has another label than 0: there is nothing to find",
            fix="give labels with a class in them",
        )
    names = name_classes(
        class_names, source.class_names, labels, str(path), are_all=len(looks) == count
    )
    intensities = np.concatenate([look.intensities for look in looks])
    low, median, high = np.percentile(intensities, _PERCENTILES)
    found = [[each[number] for each in sizes if number in each] for number in range(1, len(names))]
    return Fingerprint(
        str(path),
        count,
        np.array([look.spacing_mm for look in looks]),
        np.array([look.shape for look in looks]),
        looks[0].channels,
        "ct" if all(look.is_ct for look in looks) else "other",
        float(low),
        float(median),
        float(high),
        names,
        tuple(float(np.mean(each)) if each else 0.0 for each in found),
        tuple(len(each) / len(looks) for each in found),
    )


@dataclass(frozen=True, eq=False)
class _Look:
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, ...]
    channels: int
    is_ct: bool
    intensities: np.ndarray
    class_ml: dict[int, float]


def _look(pair: VolumePair, number: int, max_voxels: int) -> _Look:
    image = read_volume(pair.image, max_voxels=max_voxels).reoriented(DEFAULT_ORIENTATION)
    labels = laid_on(image, read_labels(pair.labels, max_voxels), pair.labels).voxels[0]
    voxels = image.voxels[0]
    counts = np.bincount(labels.ravel())
    inside = voxels[labels > 0] if counts[1:].any() else voxels.ravel()
    if len(inside) > VOXELS_PER_VOLUME:
        inside = np.random.default_rng(number).choice(inside, VOXELS_PER_VOLUME, replace=False)
    ml = float(np.prod(image.spacing_mm)) / 1000
    return _Look(
        image.spacing_mm,
        labels.shape,
        len(image.voxels),
        all(each.min() < AIR_HU and each.max() <= LARGEST_HU for each in image.voxels),
        np.asarray(inside, np.float32),
        {value: float(counts[value]) * ml for value in range(1, len(counts)) if counts[value]},
    )


def _x(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes)


def _range(rows: np.ndarray) -> str:
    return f"from {_x(rows.min(0))} to {_x(rows.max(0))}"
