"""How well a segmentation fits: Dice of each class, and the 95 % Hausdorff distance in mm.

Papers: Dice 1945; Taha and Hanbury 2015, doi 10.1186/s12880-015-0068-x (both measures). The
distance is the larger of the two directed 95th percentiles between surfaces; a surface is the
voxels of a mask that a face of the volume or a voxel outside the mask touches.

Shapes: D H W voxels, K classes.
"""

from collections.abc import Sequence

import numpy as np

from deepseek.errors import DataError
from deepseek.registry import import_extra

IGNORE_INDEX = -100


def dice_by_class(found: np.ndarray, known: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the Dice coefficient of each class, float64 (K,), in 0..1.

    NaN where a class is neither found nor there. A known label of -100 is not counted.

    Args:
        found: labels, integers (D, H, W).
        known: likewise.
        num_classes: K, the background among them.

    Raises:
        DataError: shapes differ, or a label is outside 0..K-1.
    """
    found, known = _same_shape(found, known)
    counted = known != IGNORE_INDEX
    found, known = found[counted].astype(np.int64), known[counted].astype(np.int64)
    for name, labels in (("found", found), ("known", known)):
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            raise DataError(
                f"labels that are {name} go from {labels.min()} to {labels.max()}, outside"
                f" 0..{num_classes - 1}",
                fix="number the classes 0, 1, 2, ...",
            )
    shared = np.bincount(known[found == known], minlength=num_classes)
    both = np.bincount(found, minlength=num_classes) + np.bincount(known, minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return 2 * shared / both


def hausdorff_mm(
    found: np.ndarray,
    known: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    percentile: float = 95.0,
) -> float:
    """Return the distance of two masks' surfaces in mm; needs scipy.

    Infinite if one mask is empty, NaN if both are.

    Args:
        found: mask, bool (D, H, W).
        known: likewise.
        spacing_mm: between voxels, of each axis.
        percentile: of the distances, 0..100; 100 is the plain Hausdorff distance.

    Raises:
        DataError: shapes differ.
        MissingExtraError: scipy is not installed.
    """
    found, known = _same_shape(np.asarray(found, bool), np.asarray(known, bool))
    if not found.any() or not known.any():
        return float("inf") if found.any() or known.any() else float("nan")
    box = _bounding_box(found | known)
    surfaces = _surface(found[box]), _surface(known[box])
    ndimage = import_extra("scipy.ndimage", "medical")
    directed = []
    for surface, other in (surfaces, surfaces[::-1]):
        distances = ndimage.distance_transform_edt(~other, sampling=spacing_mm)
        directed.append(np.percentile(distances[surface], percentile))
    return float(max(directed))


def _same_shape(found: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, known = np.asarray(found), np.asarray(known)
    if found.shape != known.shape:
        raise DataError(
            f"found has the shape {found.shape}, known {known.shape}",
            fix="give both in the same voxels",
        )
    return found, known


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        places = np.flatnonzero(mask.any(others))
        box.append(slice(places[0], places[-1] + 1))
    return tuple(box)


def _surface(mask: np.ndarray) -> np.ndarray:
    """Return the voxels of a mask with a neighbour outside it, across a face."""
    padded = np.pad(mask, 1)
    inner = np.ones_like(mask)
    for axis in range(mask.ndim):
        for shift in (-1, 1):
            moved = np.roll(padded, shift, axis)
            inner &= moved[(slice(1, -1),) * mask.ndim]
    return mask & ~inner
