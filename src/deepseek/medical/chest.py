"""What belongs to the body in a chest CT, and what of it is lung.

By threshold and connection, in the manner of Hu et al. 2001, doi 10.1109/42.929615. Departures: a
fixed threshold of -320 HU; left and right lung are not told apart. Needs scipy.

Shapes: D slices, H rows, W columns.
"""

from collections.abc import Sequence

import numpy as np

from deepseek.errors import DataError
from deepseek.registry import import_extra

TISSUE_HU = -320.0
SMALLEST_LUNG_ML = 20.0
CLOSING_MM = 10.0
"""Radius of the disc that closes the lung's edge, over vessels and nodules at the wall."""


def body_mask(hounsfield: np.ndarray) -> np.ndarray:
    """Return the body without the table, lungs included, bool (D, H, W).

    Args:
        hounsfield: of a CT, (D, H, W).

    Raises:
        DataError: there is no tissue at all.
    """
    ndimage = import_extra("scipy.ndimage", "medical")
    tissue = _opened(ndimage, _checked(hounsfield) > TISSUE_HU)
    parts, count = ndimage.label(tissue)
    if count == 0:
        raise DataError(
            f"no voxel is above {TISSUE_HU:g} HU: there is no body in this volume",
            fix="give a CT in Hounsfield units",
        )
    sizes = np.bincount(parts.ravel())
    largest = parts == 1 + int(sizes[1:].argmax())
    return np.stack([ndimage.binary_fill_holes(slice_) for slice_ in largest])


def lung_mask(hounsfield: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the air inside the body with what is embedded in it, bool (D, H, W).

    Args:
        hounsfield: of a chest CT, (D, H, W).
        spacing_mm: along D, H, W.

    Raises:
        DataError: there is no tissue at all.
    """
    ndimage = import_extra("scipy.ndimage", "medical")
    inside = body_mask(hounsfield)
    air = _opened(ndimage, inside & (hounsfield < TISSUE_HU))
    parts, _ = ndimage.label(air)
    volumes_ml = np.bincount(parts.ravel()) * float(np.prod(spacing_mm)) / 1000
    is_lung = volumes_ml >= SMALLEST_LUNG_ML
    is_lung[0] = False
    lungs = is_lung[parts]
    # slice by slice: a ball would be cut off at the first and the last
    closed = [_close(ndimage, slice_, spacing_mm[1:]) for slice_ in lungs]
    return np.stack([ndimage.binary_fill_holes(slice_) for slice_ in closed]) & inside


def _opened(ndimage, mask: np.ndarray) -> np.ndarray:
    """Return a mask without threads; slice by slice, as slices may be thick, or few."""
    return ndimage.binary_opening(mask, ndimage.generate_binary_structure(2, 1)[None])


def _close(ndimage, mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return a slice closed by a disc, each part on its own: the lungs must not grow together.

    By distances, whose cost does not grow with the disc.
    """
    parts, count = ndimage.label(mask)
    margin = int(CLOSING_MM / min(spacing_mm)) + 2
    closed = np.pad(mask, margin)
    for box, number in zip(ndimage.find_objects(parts), range(1, count + 1), strict=True):
        alone = np.pad(parts[box] == number, margin)
        away = ndimage.distance_transform_edt(~alone, sampling=spacing_mm)
        depth = ndimage.distance_transform_edt(away <= CLOSING_MM, sampling=spacing_mm)
        place = tuple(slice(side.start, side.stop + 2 * margin) for side in box)
        closed[place] |= depth > CLOSING_MM
    return closed[margin:-margin, margin:-margin]


def _checked(hounsfield: np.ndarray) -> np.ndarray:
    if hounsfield.ndim != 3:
        raise DataError(
            f"a CT has the shape {hounsfield.shape}, not (D, H, W)", fix="give one channel"
        )
    return hounsfield
