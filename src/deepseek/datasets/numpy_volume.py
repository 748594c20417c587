"""NumPy volumes: `.npy` (D, H, W) or (C, D, H, W), and `.npz` with `voxels` and its geometry."""

import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from deepseek.datasets.volume import Volume, make_affine
from deepseek.datasets.volume_file import check_holds, check_size
from deepseek.errors import DataError

_MAX_HEADER = 10_000
_DAMAGED = (
    ValueError, EOFError, KeyError, SyntaxError, NotImplementedError, RuntimeError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_MEMBERS = ("voxels", "spacing_mm", "affine")


def read_numpy(path: Path, max_voxels: int) -> Volume:
    """Read an array; nothing in it can be Python objects.

    A `.npz` holds `voxels`, and may hold `spacing_mm` (3,) along its axes, or an `affine` (4, 4)
    as `Volume` has it. Without them voxels are 1 mm apart.

    Raises:
        DataError: the file is damaged or too large, or its arrays have other shapes.
    """
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                voxels = _read(file, path.stat().st_size, max_voxels, str(path))
            return Volume(_with_channels(voxels, path), np.array(make_affine((1.0, 1.0, 1.0))))
        return _read_archive(path, max_voxels)
    except _DAMAGED as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is no NumPy file, or is damaged: {error}", fix="save it anew"
        ) from error


def read_arrays(
    path: Path, limits: Mapping[str, int], *, needed: Sequence[str], kinds: str = "iufb"
) -> dict[str, np.ndarray]:
    """Read arrays of a `.npz` by name; those that are not there are left out.

    Args:
        path: of the file.
        limits: most items of each array.
        needed: arrays without which the file is refused.
        kinds: of dtype; objects never.

    Raises:
        DataError: the file is damaged, an array is missing, too large, or of another kind.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            there = {info.filename: info for info in archive.infolist()}
            for name in needed:
                if f"{name}.npy" not in there:
                    shown = ", ".join(sorted(there)[:5]) or "nothing"
                    raise DataError(
                        f"{path} has no array `{name}`, but {shown}",
                        fix=f"np.savez(path, {'=..., '.join(needed)}=...)",
                    )
            for name, limit in limits.items():
                info = there.get(f"{name}.npy")
                if info is None:
                    continue
                is_packed = info.compress_type != zipfile.ZIP_STORED
                with archive.open(info) as file:
                    arrays[name] = _read(
                        file, info.compress_size, limit, f"{path} {name}",
                        is_packed=is_packed, kinds=kinds,
                    )  # fmt: skip
    except _DAMAGED as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is no NumPy file, or is damaged: {error}", fix="save it anew"
        ) from error
    return arrays


def _read_archive(path: Path, max_voxels: int) -> Volume:
    limits = {name: max_voxels if name == "voxels" else 16 for name in _MEMBERS}
    arrays = read_arrays(path, limits, needed=("voxels",))
    voxels = _with_channels(arrays["voxels"], path)
    if "affine" in arrays:
        return Volume(voxels, _shaped(arrays["affine"], (4, 4), path, "affine"))
    spacing = _shaped(arrays.get("spacing_mm", np.ones(3)), (3,), path, "spacing_mm")
    return Volume(voxels, make_affine(spacing.tolist()))


def _read(
    file: IO[bytes], there_bytes: int, max_voxels: int, where: str, *, is_packed: bool = False,
    kinds: str = "iufb",
) -> np.ndarray:  # fmt: skip
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"version {version} of the format")
    shape, is_fortran, dtype = read_header(file, max_header_size=_MAX_HEADER)
    if dtype.kind not in kinds:
        raise DataError(
            f"{where} holds {dtype}, not real numbers", fix="save numbers, such as int16"
        )
    check_size(shape, max_voxels, where)
    num_bytes = prod(shape) * dtype.itemsize
    check_holds(num_bytes, there_bytes, where, is_packed=is_packed)
    content = file.read(num_bytes)
    check_holds(num_bytes, len(content), where)
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
    return array.astype(np.uint8) if dtype.kind == "b" else array


def _with_channels(voxels: np.ndarray, path: Path) -> np.ndarray:
    if voxels.ndim not in (3, 4):
        raise DataError(
            f"{path} has the shape {voxels.shape}: neither (D, H, W) nor (C, D, H, W)",
            fix="save one volume a file",
        )
    return voxels[None] if voxels.ndim == 3 else voxels


def _shaped(array: np.ndarray, shape: tuple[int, ...], path: Path, name: str) -> np.ndarray:
    if array.shape != shape:
        raise DataError(
            f"{path}: {name} has the shape {array.shape}, not {shape}", fix="save it anew"
        )
    return array.astype(np.float64)
