"""A volume: voxels, and where each of them lies in the patient.

Coordinates are those of DICOM, ITK and LUNA16: millimetres towards the patient's left, posterior
and superior (LPS). An orientation names where the axes D, H, W lead: L or R, P or A, S or I; `SPL`
is a scan as a radiologist reads it, axial slices from the feet up.

Shapes: C channels, D slices, H rows, W columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from deepseek.errors import ConfigError, DataError

SPACING_LIMITS_MM = (1e-3, 1e3)
MAX_SHEAR = 0.01
"""Cosine of the angle between two axes: resampling along axes, and distances, take it for 0."""
_LETTERS = ("LR", "PA", "SI")
"""Where an axis of the patient leads upwards and downwards, for x, y, z."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels with their place.

    Args:
        voxels: (C, D, H, W), any real dtype.
        affine: (4, 4): index (d, h, w, 1) -> millimetres (x, y, z, 1), LPS.
    """

    voxels: np.ndarray
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along D, H and W."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    @property
    def orientation(self) -> str:
        """Where D, H and W lead: three letters, the nearest where they are oblique."""
        directions = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        best = max(
            permutations(range(3)),
            key=lambda order: sum(abs(directions[order[axis], axis]) for axis in range(3)),
        )
        return "".join(
            _LETTERS[world][int(directions[world, axis] < 0)] for axis, world in enumerate(best)
        )

    def reoriented(self, orientation: str) -> "Volume":
        """Return the same volume with its axes in another order or direction.

        Raises:
            ConfigError: `orientation` does not name three different axes.
        """
        check_orientation(orientation)
        now = self.orientation
        order = [
            next(i for i, at in enumerate(now) if _axis(at) == _axis(to)) for to in orientation
        ]
        voxels = self.voxels.transpose(0, *(axis + 1 for axis in order))
        affine = self.affine[:, [*order, 3]].copy()
        for axis, (source, letter) in enumerate(zip(order, orientation, strict=True)):
            if now[source] != letter:
                affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis + 1] - 1)
                affine[:3, axis] *= -1
                voxels = np.flip(voxels, axis + 1)
        return Volume(voxels, affine)

    def to_mm(self, indices: np.ndarray) -> np.ndarray:
        """Return where indices (N, 3), whole or not, lie in the patient, (N, 3) millimetres."""
        return np.asarray(indices, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_indices(self, points_mm: np.ndarray) -> np.ndarray:
        """Return the indices (N, 3), not rounded, of points (N, 3) in millimetres."""
        away = np.asarray(points_mm, np.float64) - self.affine[:3, 3]
        return np.linalg.solve(self.affine[:3, :3], away.T).T


def check_orientation(orientation: str) -> None:
    """Refuse what does not name three different axes.

    Raises:
        ConfigError: the letters are others, or one axis is named twice.
    """
    axes = {_axis(letter) for letter in orientation}
    if len(orientation) != 3 or len(axes) != 3 or None in axes:
        raise ConfigError(
            f"orientation={orientation!r} does not name three axes",
            fix="one of L R, one of P A and one of S I, such as SPL",
        )


def check_affine(affine: np.ndarray, where: str) -> None:
    """Refuse an affine in which voxels have no size or no place.

    Raises:
        DataError: it is not finite, a spacing is beyond belief, or axes are at no right angles.
    """
    low, high = SPACING_LIMITS_MM
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise DataError(
            f"{where}: origin, spacing or directions are not finite numbers",
            fix="write the file anew with the geometry of the scanner",
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (low <= spacing.min() and spacing.max() <= high):
        shown = " x ".join(f"{size:g}" for size in spacing)
        raise DataError(
            f"{where}: a spacing of {shown} mm is not between {low:g} and {high:g} mm",
            fix="write the file anew with the spacing of the scanner, in millimetres",
        )
    directions = affine[:3, :3] / spacing
    if abs(np.linalg.det(directions)) < 1e-3:
        raise DataError(
            f"{where}: two of its axes lead the same way",
            fix="write the file anew with the directions of the scanner",
        )
    cosines = np.abs(directions.T @ directions - np.eye(3))
    if cosines.max() > MAX_SHEAR:
        raise DataError(
            f"{where}: two of its axes are at {np.degrees(np.arccos(cosines.max())):.1f} degrees,"
            " not 90: its voxels are sheared",
            fix="resample it to upright voxels first (a tilted gantry, an affine registration)",
        )


def make_affine(
    spacing_mm: Sequence[float], origin_mm: Sequence[float] = (0, 0, 0), directions=None
) -> np.ndarray:
    """Return an affine from spacing, origin and directions.

    Args:
        spacing_mm: along D, H, W.
        origin_mm: place (x, y, z) of the first voxel.
        directions: unit vectors of D, H, W as columns, (3, 3); those of `SPL` by default.
    """
    affine = np.eye(4)
    unit = np.eye(3)[:, ::-1] if directions is None else np.asarray(directions, np.float64)
    affine[:3, :3] = unit * np.asarray(spacing_mm, np.float64)
    affine[:3, 3] = origin_mm
    return affine


def _axis(letter: str) -> int | None:
    return next((axis for axis, pair in enumerate(_LETTERS) if letter in pair), None)
