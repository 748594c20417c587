"""Files of volumes: which reader takes which, and what is checked whoever reads.

What a header declares is checked before memory is asked for: a file of a few bytes may declare
terabytes.
"""

import os
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import NoReturn

import numpy as np

from deepseek.datasets.volume import Volume, check_affine
from deepseek.errors import DataError
from deepseek.registry import Registry

DEFAULT_MAX_VOXELS = 2**29
"""Voxels above which a volume is refused: 512 x 512 x 2,048."""
MOST_SHRUNK = 1032
"""Bytes that a byte of deflate (gzip, zlib, zip) can stand for at the most."""

VOLUME_FORMATS: Registry[Callable[[Path, int], Volume]] = Registry(
    "volume format",
    {
        "nifti": "deepseek.datasets.nifti:read_nifti",
        "metaimage": "deepseek.datasets.metaimage:read_metaimage",
        "numpy": "deepseek.datasets.numpy_volume:read_numpy",
        "dicom": "deepseek.medical.dicom_series:read_series",
    },
)
_FORMATS = {
    ".nii": "nifti", ".nii.gz": "nifti", ".mhd": "metaimage", ".mha": "metaimage",
    ".npy": "numpy", ".npz": "numpy",
}  # fmt: skip


def read_volume(path: str | os.PathLike, *, max_voxels: int = DEFAULT_MAX_VOXELS) -> Volume:
    """Return the volume of a file, or of a folder with one DICOM series in or below it.

    Args:
        path: `.nii`, `.nii.gz`, `.mhd`, `.mha`, `.npy`, `.npz`, or a folder of DICOM slices.
        max_voxels: channels x depth x height x width above which it is refused unread.

    Raises:
        DataError: it cannot be read, is damaged or too large, or has no sensible geometry.
        MissingExtraError: the package that reads this format is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist", fix="correct the path")
    try:
        name = format_of(path) or _refuse(path)
        volume = VOLUME_FORMATS.get(name)(path, max_voxels)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or type(error).__name__}",
            fix="check that it is complete and may be read",
        ) from error
    check_volume(volume, str(path))
    return volume


def check_volume(volume: Volume, where: str) -> None:
    """Refuse what was read without a sensible geometry, or with numbers that are none.

    Raises:
        DataError: voxels are NaN or infinite, or have no size or place.
    """
    check_affine(volume.affine, where)
    if volume.voxels.dtype.kind == "f":
        num_bad = volume.voxels.size - int(np.isfinite(volume.voxels).sum())
        if num_bad:
            raise DataError(
                f"{where}: {num_bad:,} of {volume.voxels.size:,} voxels are NaN or infinite",
                fix="find out what wrote them, and replace them, by air or by the background",
            )


def _refuse(path: Path) -> NoReturn:
    with path.open("rb") as file:
        is_slice = file.read(132)[128:] == b"DICM"
    if is_slice or path.suffix.lower() == ".dcm":
        raise DataError(
            f"{path} is one file of a DICOM series, not a volume",
            fix=f"give its folder: {path.parent}",
        )
    raise DataError(
        f"{path} is none of the formats of volumes: {', '.join(_FORMATS)}, DICOM folder",
        fix="convert it, or correct the path",
    )


def format_of(path: Path) -> str | None:
    """Return the name of the format of a file or folder, `None` if it is no volume by its name."""
    if path.is_dir():
        return "dicom"
    name = path.name.lower()
    return next((kind for suffix, kind in _FORMATS.items() if name.endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """Return the name of a file without the suffix of its format."""
    suffix = max((s for s in _FORMATS if path.name.lower().endswith(s)), key=len, default="")
    return path.name[: len(path.name) - len(suffix)]


def check_size(shape: Sequence[int], max_voxels: int, where: str) -> None:
    """Refuse a declared shape that is empty or too large.

    Raises:
        DataError: a size is below 1, or there are more than `max_voxels`.
    """
    shown = " x ".join(str(size) for size in shape)
    if not shape or min(shape) < 1:
        raise DataError(
            f"{where} declares {shown or 'no'} voxels: it is empty", fix="leave the file out"
        )
    if prod(shape) > max_voxels:
        raise DataError(
            f"{where} declares {shown} voxels, more than max_voxels={max_voxels:,}",
            fix="if it is what you expect, raise max_voxels",
        )


def check_holds(num_bytes: int, there_bytes: int, where: str, *, is_packed: bool = False) -> None:
    """Refuse a file that is too small for what it declares.

    Raises:
        DataError: it is; also where no compression could make so little of so much.
    """
    can_hold = there_bytes * (MOST_SHRUNK if is_packed else 1)
    if num_bytes > can_hold:
        raise DataError(
            f"{where} declares {num_bytes:,} bytes of voxels and holds {there_bytes:,}"
            + (" compressed" if is_packed else ""),
            fix="the file is truncated or its header wrong: copy it again from its source",
        )
