"""A volume from the body of a request to its mask: read, prepared and written in a process apart.

A body is a NIfTI file; or a MetaImage file or a zip of one DICOM series, which are read from a
folder that the service makes and removes, in memory where the system has such.

Shapes: C channels, D H W voxels, P centres.
"""

import io
import lzma
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from deepseek.datasets import DataSpec
from deepseek.datasets.nifti import decode_nifti, encode_nifti
from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import VOLUME_FORMATS, read_volume
from deepseek.errors import DataError, MissingExtraError
from deepseek.models.volume_detector import MAX_CENTERS, told_names
from deepseek.models.volume_predictor import REGIONS, place_region, prepare_volume
from deepseek.models.volume_segmenter import measure_ml, restore_labels
from deepseek.registry import import_extra

VOXEL_BYTES = 24
"""Memory that a voxel takes at the most while it is read and prepared."""
WAITING = 8
"""Volumes that may wait for a model."""
MAX_SLICES = 4096
"""Files of a zip at the most."""
SLICE_HEADER_BYTES = 2**18
"""Of each file of a zip, beside its voxels of four bytes at the most."""
_PACKAGES = ("nibabel", "pydicom.filereader", "pydicom.pixels", "scipy.ndimage")
_METAIMAGE = (b"ObjectType", b"NDims")
_BROKEN_ZIP = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, UnicodeDecodeError, RuntimeError,
    NotImplementedError, EOFError, OSError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A volume as the model takes it, and where it was scanned.

    Attributes:
        voxels: float32 (C, D, H, W), prepared; of a service that looks at a region alone with one
            channel more, 1 inside it.
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


def needs_folder(content: bytes) -> bool:
    """Return whether a body is read from a folder: a zip, or a MetaImage file."""
    return content.startswith((b"PK", *_METAIMAGE))


def import_readers(region: str | None) -> None:
    """Import what `open_scan` and `make_mask` need: seconds, which are no part of a volume's time.

    A package that is not installed is named by the request that needs it.

    Args:
        region: of `REGIONS`, as for `open_scan`.
    """
    for name in VOLUME_FORMATS.names():
        with suppress(MissingExtraError):
            VOLUME_FORMATS.get(name)
    with suppress(MissingExtraError):
        _ = REGIONS.get(region) if region is not None else None
    for package in _PACKAGES:
        with suppress(MissingExtraError):
            import_extra(package, "medical")


def open_scan(
    content: bytes, spec: DataSpec, max_voxels: int, folder: str = "", region: str | None = None
) -> PreparedScan:
    """Return the volume in the bytes of a file, prepared.

    Args:
        content: of a NIfTI or MetaImage file, or a zip of one DICOM series.
        spec: of the model.
        max_voxels: of the volume.
        folder: an empty one, for what `needs_folder`.
        region: of `REGIONS`: where there is something to look for.

    Raises:
        DataError: it is none, is damaged or too large, or not of the kind that the model takes.
    """
    if needs_folder(content):
        volume = _read_in(Path(folder), content, max_voxels)
    else:
        volume = decode_nifti(content, "the volume", max_voxels)
    prepared = prepare_volume(volume, spec, max_voxels, "the volume")
    voxels = prepared.voxels
    if region is not None:
        placed = place_region(REGIONS.get(region), volume, spec, max_voxels, "the volume")
        voxels = np.concatenate([voxels, placed.astype(np.float32)])
    _, d, h, w = volume.voxels.shape
    return PreparedScan(voxels, prepared.affine, (d, h, w), volume.affine)


def _read_in(folder: Path, content: bytes, max_voxels: int) -> Volume:
    try:
        if content.startswith(b"PK"):
            _unpack(content, folder, max_voxels)
            return read_volume(folder, max_voxels=max_voxels)
        file = folder / "scan.mha"
        _write(file, content)
        return read_volume(file, max_voxels=max_voxels)
    except DataError as error:
        # where it was read from is no affair of a client
        said = error.message.replace(f"{folder}/", "").replace(str(folder), "the zip")
        raise DataError(said, fix=error.fix) from error


def _unpack(content: bytes, folder: Path, max_voxels: int) -> None:
    """Write the files of a zip under names of our own, after their sizes were looked at."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [info for info in archive.infolist() if _is_slice(info.filename)]
            declared = sum(info.file_size for info in entries)
            room = 4 * max_voxels + SLICE_HEADER_BYTES * len(entries)
            if not 0 < len(entries) <= MAX_SLICES or declared > room:
                raise DataError(
                    f"the zip declares {len(entries):,} files of {declared:,} bytes: more than"
                    f" {MAX_SLICES:,}, or {room:,} bytes, or none",
                    fix="zip the slices of one series",
                )
            for number, info in enumerate(entries):
                with archive.open(info) as source:
                    part = source.read(info.file_size)
                # what is called otherwise, such as a licence, need not be a slice
                suffix = ".dcm" if info.filename.lower().endswith(".dcm") else ""
                _write(folder / f"{number:05}{suffix}", part)
    except _BROKEN_ZIP as error:
        raise DataError(
            f"the zip is damaged or encrypted: {type(error).__name__}", fix="zip the series anew"
        ) from error


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise DataError(
            f"the service has no room to read it: {error.strerror}",
            fix="send a .nii.gz file, which takes none",
        ) from error


def _is_slice(name: str) -> bool:
    """Return whether an entry may be a slice, not a folder or what a system adds."""
    parts = PurePosixPath(name).parts
    is_hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not name.endswith("/") and not is_hidden and parts[-1:] != ("DICOMDIR",)


def shape_of_centers(spec: DataSpec) -> tuple[int, int]:
    """Return the shape of what a detector answers.

    A row is d, h, w, diameter and score, this below 0 where there is no more, and what the model
    tells besides.
    """
    return MAX_CENTERS, 5 + len(told_names(spec))


def findings_in(rows: np.ndarray, scan: PreparedScan, spec: DataSpec) -> list[dict[str, float]]:
    """Return the findings of a detector, in millimetres of the patient, the highest score first.

    Args:
        rows: `shape_of_centers`, what the model found.
        scan: what it was given.
        spec: of the model.
    """
    there = rows[rows[:, 4] >= 0].astype(np.float64)
    points = Volume(scan.voxels, scan.affine).to_mm(there[:, :3])
    names = ("x", "y", "z", "diameter_mm", "score", *told_names(spec))
    lines = np.concatenate([points, there[:, 3:]], 1).tolist()
    return [dict(zip(names, line, strict=True)) for line in lines]


def fill_rows(found: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return rows of a detector as float32 of `shape_of_centers`."""
    filled = np.full(shape, -1, np.float32)
    filled[: len(found)] = found
    return filled


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
