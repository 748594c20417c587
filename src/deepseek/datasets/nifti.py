"""NIfTI volumes, by nibabel: `.nii` and `.nii.gz`."""

import zlib
from math import prod
from pathlib import Path

import numpy as np

from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import check_holds, check_size
from deepseek.errors import DataError
from deepseek.registry import import_extra

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM = {"meter": 1000.0, "micron": 1e-3}


def read_nifti(path: Path, max_voxels: int) -> Volume:
    """Read a volume; a fourth axis is channels. Its affine counts from the sform, else the qform.

    Raises:
        DataError: the file is damaged, too large, or holds something else than real numbers.
        MissingExtraError: nibabel is not installed.
    """
    nibabel = import_extra("nibabel", "medical")
    damaged = (
        nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError,
        EOFError, zlib.error, ValueError, OverflowError, KeyError,
    )  # fmt: skip
    try:
        image = nibabel.load(path)
        header, shape = image.header, tuple(map(int, image.shape))
        dtype = np.dtype(header.get_data_dtype())
        scale = _MM.get(header.get_xyzt_units()[0], 1.0)
    except damaged as error:
        raise _damaged(path, error) from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4):
        raise DataError(
            f"{path} has {len(shape)} axes, neither three nor four with channels",
            fix="take one volume out of the series",
        )
    check_size(shape, max_voxels, str(path))
    if dtype.kind not in "iuf":
        raise DataError(
            f"{path} holds {dtype} voxels, not real numbers", fix="convert it to int16 or float32"
        )
    is_packed = path.name.lower().endswith(".gz")
    offset = 0 if is_packed else int(image.dataobj.offset)
    num_bytes = prod(shape) * dtype.itemsize
    check_holds(num_bytes, path.stat().st_size - offset, str(path), is_packed=is_packed)
    try:
        voxels = np.asanyarray(image.dataobj).reshape(shape)
    except (*damaged, OSError) as error:
        raise _damaged(path, error) from error
    affine = _TO_LPS @ np.diag([scale, scale, scale, 1.0]) @ image.affine
    # NIfTI counts x, y, z; ours is z, y, x, and channels come first
    voxels = voxels.transpose(2, 1, 0)[None] if voxels.ndim == 3 else voxels.transpose(3, 2, 1, 0)
    return Volume(voxels, affine[:, [2, 1, 0, 3]])


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is no NIfTI file, or is damaged: {error}",
        fix="copy it again from its source",
    )
