"""A detector that learns nothing: bright blobs in scale space; a floor for those that learn.

Paper: Lindeberg 1998, doi 10.1023/A:1008045108935 (maxima over place and scale of the Laplacian,
times the scale squared). Needs scipy.

Shapes: D H W voxels, M marks.
"""

from collections.abc import Sequence

import numpy as np
import torch

from deepseek.medical.froc import Marks
from deepseek.models.peaks import suppress
from deepseek.registry import import_extra

DIAMETERS_MM = (5.0, 7.0, 10.0, 14.0, 20.0, 28.0)
MAX_MARKS = 30


def find_blobs(
    voxels: np.ndarray,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    diameters_mm: Sequence[float] = DIAMETERS_MM,
) -> Marks:
    """Return the bright blobs of a volume; scores are responses, not probabilities.

    Args:
        voxels: a window of HU as 0..1, (D, H, W).
        spacing_mm: along D, H, W.
        diameters_mm: of balls that are looked for.
    """
    ndimage = import_extra("scipy.ndimage", "medical")
    responses = np.stack([
        # a ball answers most where sigma is its radius / sqrt(3)
        -((diameter / 2) ** 2 / 3)
        * sum(_curvature(ndimage, voxels, diameter / (2 * 3**0.5), spacing_mm))
        for diameter in diameters_mm
    ])  # fmt: skip
    is_peak = (responses == ndimage.maximum_filter(responses, 3)) & (responses > 0)
    places = np.argwhere(is_peak)
    order = np.argsort(-responses[is_peak], kind="stable")[: 4 * MAX_MARKS]
    places, scores = places[order], responses[is_peak][order]
    centers = places[:, 1:] * np.array(spacing_mm)
    sizes = np.array(diameters_mm)[places[:, 0]]
    kept = suppress(torch.from_numpy(centers), torch.from_numpy(sizes)).numpy()[:MAX_MARKS]
    return Marks(centers[kept], scores[kept])


def _curvature(
    ndimage, voxels: np.ndarray, sigma_mm: float, spacing_mm: Sequence[float]
) -> list[np.ndarray]:
    """Return the second derivative along each axis, per mm squared, at a scale."""
    sigmas = [sigma_mm / spacing for spacing in spacing_mm]
    return [
        ndimage.gaussian_filter(voxels, sigmas, [2 * (axis == other) for other in range(3)])
        / spacing**2
        for axis, spacing in enumerate(spacing_mm)
    ]
