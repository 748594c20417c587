"""A segmentation that learns nothing: what is bright and hangs together; a floor. Needs scipy."""

import numpy as np

from deepseek.medical.nodule_features import TISSUE
from deepseek.registry import import_extra


def largest_bright_part(voxels: np.ndarray, threshold: float = TISSUE) -> np.ndarray:
    """Return the largest connected part above a threshold, bool (D, H, W); all False without one.

    Args:
        voxels: a window of HU as 0..1, (D, H, W).
        threshold: 0..1.
    """
    ndimage = import_extra("scipy.ndimage", "medical")
    parts, count = ndimage.label(voxels > threshold)
    if count == 0:
        return np.zeros(voxels.shape, bool)
    return parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
