"""NIfTI volumes, by nibabel: `.nii` and `.nii.gz`."""

import gzip
import zlib
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import check_holds, check_size, check_volume
from deepseek.errors import DataError
from deepseek.registry import import_extra
from deepseek.whole_file import replacing

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM = {"meter": 1000.0, "micron": 1e-3}
_GZIP = b"\x1f\x8b"
_MAX_CHANNELS = 16
"""Along a fourth axis: more are the times of a series, or directions of diffusion."""
_NO_STEPS = (0.0, 1.0)
"""Along a fourth axis that is not time; ITK says seconds of every file, so that the unit is none"""
_HEADER_BYTES = 1 << 20
"""Of a header and what is appended to it."""
_PART_BYTES = 1 << 20
"""Unpacked at a time."""


def read_nifti(path: Path, max_voxels: int) -> Volume:
    """Read a volume; a fourth axis is channels, as is a fifth where the fourth is 1.

    Its affine counts from the sform, else the qform.

    Raises:
        DataError: the file is damaged, too large, a series of times, or holds something else than
            real numbers.
        MissingExtraError: nibabel is not installed.
    """
    nibabel = import_extra("nibabel", "medical")
    try:
        image = nibabel.load(path)
    except _damages(nibabel) as error:
        raise _damaged(str(path), error) from error
    is_packed = path.name.lower().endswith(".gz")
    return _to_volume(nibabel, image, str(path), path.stat().st_size, is_packed, max_voxels)


def decode_nifti(content: bytes, where: str, max_voxels: int) -> Volume:
    """Read a volume from the bytes of a `.nii` or `.nii.gz` file; nothing is written or opened.

    Args:
        content: of the file.
        where: what it is called in messages.
        max_voxels: above which it is refused.

    Raises:
        DataError: as `read_nifti`; what is packed is larger than such a volume could be.
        MissingExtraError: nibabel is not installed.
    """
    nibabel = import_extra("nibabel", "medical")
    if content[:2] == _GZIP:
        content = _unpack(content, where, max_voxels)
    kinds = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
    sizes = {int.from_bytes(content[:4], order) for order in ("little", "big")}
    kind = next((kinds[size] for size in sizes if size in kinds), None)
    if kind is None:
        raise DataError(f"{where} is no NIfTI file", fix="send the bytes of a .nii or .nii.gz file")
    try:
        image = kind.from_bytes(content)
    except _damages(nibabel) as error:
        raise _damaged(where, error) from error
    volume = _to_volume(nibabel, image, where, len(content), False, max_voxels)
    check_volume(volume, where)
    return volume


def encode_nifti(volume: Volume) -> bytes:
    """Return the bytes of a `.nii.gz` file, with the place of the volume in sform and qform.

    Args:
        volume: (C, D, H, W) of integers or floats; several channels become a fourth axis.

    Raises:
        MissingExtraError: nibabel is not installed.
    """
    nibabel = import_extra("nibabel", "medical")
    voxels = volume.voxels
    voxels = voxels[0].transpose(2, 1, 0) if len(voxels) == 1 else voxels.transpose(3, 2, 1, 0)
    affine = _TO_LPS @ volume.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    # a shear, which a qform has not, is left to the sform
    image.set_qform(affine, code=1, strip_shears=True)
    image.set_sform(affine, code=1)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a volume to a `.nii.gz` file, in one atomic step.

    Raises:
        MissingExtraError: nibabel is not installed.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(encode_nifti(volume))


def _unpack(content: bytes, where: str, max_voxels: int) -> bytes:
    """Return what is packed, in one member or, as bgzip does it, in many."""
    limit, found = max_voxels * 8 + _HEADER_BYTES, BytesIO()
    try:
        with gzip.GzipFile(fileobj=BytesIO(content)) as file:
            while found.tell() <= limit and (part := file.read(_PART_BYTES)):
                found.write(part)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(where, error) from error
    if found.tell() > limit:
        raise DataError(
            f"{where} is more than {limit:,} bytes unpacked, those of max_voxels={max_voxels:,}",
            fix="if it is what you expect, raise max_voxels",
        )
    return found.getvalue()


def _to_volume(
    nibabel: Any, image: Any, where: str, num_there: int, is_packed: bool, max_voxels: int
) -> Volume:
    """Return the volume of an open image whose file has `num_there` bytes."""
    try:
        header, shape = image.header, tuple(map(int, image.shape))
        dtype = np.dtype(header.get_data_dtype())
        scale = _MM.get(header.get_xyzt_units()[0], 1.0)
        pixdim = _pixdim(image)
    except _damages(nibabel) as error:
        raise _damaged(where, error) from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 5 and shape[3] == 1:
        shape = (*shape[:3], shape[4])  # the axis that NIfTI has for several numbers of a voxel
    elif len(shape) == 4:
        _check_channels(header, shape[3], where)
    if len(shape) not in (3, 4):
        raise DataError(
            f"{where} has {len(shape)} axes, neither three nor four with channels",
            fix="take one volume out of the series",
        )
    check_size(shape, max_voxels, where)
    if not (np.isfinite(pixdim) & (pixdim != 0)).all():
        shown = " x ".join(f"{size:g}" for size in pixdim)
        raise DataError(
            f"{where} has pixdim {shown}: the size of its voxels is unknown",
            fix="write the file anew with the spacing of the scanner",
        )
    if dtype.kind not in "iuf":
        raise DataError(
            f"{where} holds {dtype} voxels, not real numbers", fix="convert it to int16 or float32"
        )
    offset = 0 if is_packed else int(image.dataobj.offset)
    check_holds(prod(shape) * dtype.itemsize, num_there - offset, where, is_packed=is_packed)
    try:
        voxels = np.asanyarray(image.dataobj).reshape(shape)
    except (*_damages(nibabel), OSError) as error:
        raise _damaged(where, error) from error
    affine = _TO_LPS @ np.diag([scale, scale, scale, 1.0]) @ image.affine
    # NIfTI counts x, y, z; ours is z, y, x, and channels come first
    voxels = voxels.transpose(2, 1, 0)[None] if voxels.ndim == 3 else voxels.transpose(3, 2, 1, 0)
    return Volume(voxels, affine[:, [2, 1, 0, 3]])


def _check_channels(header: Any, count: int, where: str) -> None:
    """Refuse a fourth axis that is time."""
    step, unit = float(header["pixdim"][4]), header.get_xyzt_units()[1]
    is_timed = bool(header["slice_code"]) or float(header["slice_duration"]) > 0
    if count <= _MAX_CHANNELS and step in _NO_STEPS and not is_timed:
        return
    words = f"{step:g} {unit if unit != 'unknown' else 'units'} apart"
    raise DataError(
        f"{where} holds {count} volumes along its fourth axis, {words}: a series of times, not"
        " channels",
        fix="take one volume out of the series; if they are channels,"
        f" {_MAX_CHANNELS} at the most, write them with pixdim[4] = 1, or along the fifth axis",
    )


def _pixdim(image: Any) -> np.ndarray:
    """Return the three spacings as the file has them: nibabel reads a 0 as 1."""
    file = image.file_map["image"].get_prepare_fileobj("rb")
    try:
        return type(image.header).from_fileobj(file, check=False)["pixdim"][1:4]
    finally:
        file.close_if_mine()


def _damages(nibabel: Any) -> tuple[type[Exception], ...]:
    return (
        nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
        EOFError, zlib.error, ValueError, OverflowError, KeyError,
    )  # fmt: skip


def _damaged(where: str, error: Exception) -> DataError:
    return DataError(
        f"{where} is no NIfTI file, or is damaged: {error}",
        fix="copy it again from its source",
    )
