"""A volume from the body of a request to its mask: read, prepared and written in a process apart.

Shapes: C channels, D H W voxels.
"""

from dataclasses import dataclass

import numpy as np

from deepseek.datasets import DataSpec
from deepseek.datasets.nifti import decode_nifti, encode_nifti
from deepseek.models.volume_segmenter import measure_ml, prepare_volume, restore_labels

VOXEL_BYTES = 24
"""Memory that a voxel takes at the most while it is read and prepared."""
WAITING = 8
"""Volumes that may wait for a model."""


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A volume as the model takes it, and where it was scanned.

    Attributes:
        voxels: float32 (C, D, H, W), prepared.
        affine: of the prepared voxels.
        scan_shape: (D, H, W) of the scan.
        scan_affine: likewise.
    """

    voxels: np.ndarray
    affine: np.ndarray
    scan_shape: tuple[int, int, int]
    scan_affine: np.ndarray


@dataclass(frozen=True)
class Mask:
    """What was found: the bytes of a `.nii.gz` file, and millilitres of classes but the first."""

    content: bytes
    ml: dict[str, float]


def open_scan(content: bytes, spec: DataSpec, max_voxels: int) -> PreparedScan:
    """Return the volume in the bytes of a NIfTI file, prepared.

    Raises:
        DataError: it is none, is damaged or too large, or not of the kind that the model takes.
    """
    volume = decode_nifti(content, "the volume", max_voxels)
    prepared = prepare_volume(volume, spec, max_voxels, "the volume")
    _, d, h, w = volume.voxels.shape
    return PreparedScan(prepared.voxels, prepared.affine, (d, h, w), volume.affine)


def make_mask(labels: np.ndarray, scan: PreparedScan, spec: DataSpec) -> Mask:
    """Return the mask of labels (D, H, W) of a prepared volume, on the voxels of the scan.

    Args:
        labels: what the model found.
        scan: what it was given; its voxels are not needed.
        spec: of the model.
    """
    found = restore_labels(labels, scan.affine, scan.scan_shape, scan.scan_affine)
    names = spec.class_names
    measured = measure_ml(found, len(names))
    return Mask(encode_nifti(found), dict(zip(names[1:], measured[1:], strict=True)))
