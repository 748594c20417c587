"""Volumes at another spacing.

Voxels are means under a triangle that is as wide as the coarser of the two spacings, so that what
is made coarser does not alias; labels are those of the nearest voxel.
"""

from collections.abc import Sequence

import numpy as np

from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import DEFAULT_MAX_VOXELS, check_size


def resampled(
    volume: Volume,
    spacing_mm: Sequence[float],
    *,
    is_labels: bool = False,
    max_voxels: int = DEFAULT_MAX_VOXELS,
    where: str = "the volume",
) -> Volume:
    """Return a volume with exactly this spacing, over the same part of the patient.

    Args:
        volume: any.
        spacing_mm: along D, H, W.
        is_labels: whether voxels are class numbers.
        max_voxels: of the result, checked before it is made.
        where: what the volume is called in messages.

    Raises:
        DataError: the result would be too large.
    """
    steps = [new / old for new, old in zip(spacing_mm, volume.spacing_mm, strict=True)]
    sizes = volume.voxels.shape[1:]
    targets = [max(1, round(size / step)) for size, step in zip(sizes, steps, strict=True)]
    check_size((len(volume.voxels), *targets), max_voxels, f"{where} at {tuple(spacing_mm)} mm")
    voxels, affine = volume.voxels, volume.affine.copy()
    if not is_labels:
        voxels = voxels.astype(np.float32, copy=False)
    for axis, (step, target) in enumerate(zip(steps, targets, strict=True)):
        affine[:3, 3] += affine[:3, axis] * (step - 1) / 2
        affine[:3, axis] *= step
        if abs(step - 1) < 1e-6:
            continue
        places = (np.arange(target) + 0.5) * step - 0.5
        size = voxels.shape[axis + 1]
        if is_labels:
            voxels = voxels.take(np.clip(np.rint(places).astype(int), 0, size - 1), axis + 1)
            continue
        away = np.abs(places[:, None] - np.arange(size)) / max(step, 1.0)
        weights = np.maximum(1 - away, 0).astype(np.float32)
        weights /= weights.sum(1, keepdims=True)
        voxels = np.moveaxis(np.tensordot(weights, voxels, (1, axis + 1)), 0, axis + 1)
    return Volume(voxels, affine)


def labels_like(labels: Volume, shape: Sequence[int], affine: np.ndarray) -> Volume:
    """Return labels on the voxels of the volume that they were found in: each that of the nearest.

    Args:
        labels: (1, D, H, W), of a volume that was reoriented and resampled.
        shape: (D, H, W) of the volume as it was before.
        affine: likewise.
    """
    before = Volume(np.broadcast_to(np.uint8(0), (1, *shape)), affine)
    turned = before.reoriented(labels.orientation)
    voxels = labels.voxels
    for axis in range(3):
        step = turned.spacing_mm[axis] / labels.spacing_mm[axis]
        places = (np.arange(turned.voxels.shape[axis + 1]) + 0.5) * step - 0.5
        nearest = np.clip(np.rint(places).astype(int), 0, voxels.shape[axis + 1] - 1)
        voxels = voxels.take(nearest, axis + 1)
    found = Volume(voxels, turned.affine).reoriented(before.orientation)
    return Volume(np.ascontiguousarray(found.voxels), affine)
