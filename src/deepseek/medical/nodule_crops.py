"""A cube of a scan around a nodule, at 1 mm: its place, its shades, and which voxels are it."""

import numpy as np

from deepseek.datasets.resampling import resampled
from deepseek.datasets.volume import Volume

CUBE_VOXELS = 51
SPACING_MM = 1.0
AIR_HU = -1024.0
_AROUND_MM = 3.0
"""Beyond the radius of a finding, in which labels are its own."""
_MARGIN_VOXELS = 3
"""Of the scan around a cube, for the means of resampling."""


def shades_of(cube: Volume, window_hu: tuple[float, float]) -> np.ndarray:
    """Return a window of HU as 0..255, uint8 (D, H, W)."""
    low, high = window_hu
    return np.rint(np.clip((cube.voxels[0] - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def mask_of(
    cube: Volume, center_mm: np.ndarray, radius_mm: float, labels: Volume | None
) -> np.ndarray:
    """Return what is labelled near a finding, or a ball where nothing is: uint8 (D, H, W).

    Args:
        cube: around it.
        center_mm: of the finding, (3,), LPS.
        radius_mm: likewise.
        labels: of the scan that the cube is of.
    """
    shape = cube.voxels.shape[1:]
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    points = cube.to_mm(places)
    away = np.linalg.norm(points - center_mm, axis=1)
    if labels is not None:
        indices = np.rint(labels.to_indices(points)).astype(int)
        d, h, w = np.clip(indices, 0, np.array(labels.voxels.shape[1:]) - 1).T
        inside = (labels.voxels[0][d, h, w] > 0) & (away <= radius_mm + _AROUND_MM)
        if inside.any():
            return inside.reshape(shape).astype(np.uint8)
    return (away <= max(radius_mm, float(away.min()))).reshape(shape).astype(np.uint8)


def cube_at(volume: Volume, center_mm: np.ndarray, cube_voxels: int) -> Volume:
    """Return a cube at 1 mm around a place, moved into the scan where it would reach beyond it.

    Args:
        volume: (1, D, H, W), oriented `SPL`.
        center_mm: (3,), LPS.
        cube_voxels: along each side; air is beside a scan that is smaller.
    """
    spacing, sizes = np.array(volume.spacing_mm), np.array(volume.voxels.shape[1:])
    half = cube_voxels * SPACING_MM / spacing / 2
    wanted = volume.to_indices(center_mm[None])[0]
    is_small = 2 * half >= sizes
    inside = np.clip(wanted, half - 0.5, np.maximum(sizes - 0.5 - half, half - 0.5))
    middle = np.where(is_small, (sizes - 1) / 2, inside)
    low = np.maximum(np.floor(middle - half).astype(int) - _MARGIN_VOXELS, 0)
    high = np.minimum(np.ceil(middle + half).astype(int) + _MARGIN_VOXELS + 1, sizes)
    box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_mm(low[None])[0]
    fine = resampled(Volume(volume.voxels[0][box][None], affine), [SPACING_MM] * 3)
    place = fine.to_indices(volume.to_mm(middle[None]))[0]
    start = np.rint(place - (cube_voxels - 1) / 2).astype(int)
    voxels = np.full([cube_voxels] * 3, AIR_HU, np.float32)
    source, target = [], []
    for at, size in zip(start.tolist(), fine.voxels.shape[1:], strict=True):
        a, b = max(at, 0), min(at + cube_voxels, size)
        source.append(slice(a, b))
        target.append(slice(a - at, b - at))
    voxels[tuple(target)] = fine.voxels[0][tuple(source)]
    moved = fine.affine.copy()
    moved[:3, 3] = fine.to_mm(start[None])[0]
    return Volume(voxels[None], moved)
