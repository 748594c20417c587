"""A folder of DICOM slices -> one volume in HU, or the reason why it is none.

Slices are sorted by their position along the normal of their plane, never by name or number.
Messages name files and positions; never what a header says of the patient, and pydicom's own
messages, which quote headers, are not passed on.

Standard: DICOM PS3.3, C.7.6.2 (image plane) and C.11.1 (rescale).
"""

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import check_holds, check_size
from deepseek.errors import DataError
from deepseek.registry import import_extra

MAX_SLICES = 10_000
AIR_HU = -1024.0
"""Nothing is less dense than air; scanners mark what they did not see by numbers below it."""
DENSEST_LIMIT_HU = 100_000.0
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_MAGIC_AT, _MAGIC = 128, b"DICM"
_FILTERS = threading.Lock()
_NEEDED = (
    "SeriesInstanceUID", "Rows", "Columns", "BitsAllocated", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient",
)  # fmt: skip


@dataclass(frozen=True)
class _Slice:
    """What is needed of a header; lengths in mm."""

    path: Path
    series: str
    patient: str
    frame: str
    size: tuple[int, int]
    pixel_spacing: tuple[float, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    thickness: float
    modality: str


def read_series(folder: Path, max_voxels: int) -> Volume:
    """Read the only series of a folder, float32 (1, D, H, W); of CT in Hounsfield units.

    Files that are no DICOM images are passed over, unless they are called `.dcm`.

    Raises:
        DataError: there is no series or more than one; slices are missing, there twice, or differ
            in size, spacing or direction; pixels are truncated, or CT has no sensible rescale.
        MissingExtraError: pydicom is not installed.
    """
    pydicom = import_extra("pydicom", "medical")
    slices = _find_slices(pydicom, folder)
    size = slices[0].size
    check_size((len(slices), *size), max_voxels, str(folder))
    order, affine = _place(folder, slices)
    voxels = np.empty((1, len(slices), *size), np.float32)
    for number, index in enumerate(order.tolist()):
        path = slices[index].path
        voxels[0, number] = _quietly(path, partial(_read_pixels, pydicom, path, size))
    if slices[0].modality == "CT":
        _check_hounsfield(folder, voxels)
        np.maximum(voxels, AIR_HU, out=voxels)
    return Volume(voxels, affine)


def read_headers(folder: Path) -> list[Any]:
    """Return the headers of the slices of a series as pydicom has them, in the order of `D`.

    Raises:
        DataError: as `read_series`.
        MissingExtraError: pydicom is not installed.
    """
    pydicom = import_extra("pydicom", "medical")
    slices = _find_slices(pydicom, folder)
    order, _ = _place(folder, slices)
    read = partial(pydicom.dcmread, stop_before_pixels=True)
    paths = [slices[index].path for index in order.tolist()]
    return [_quietly(path, partial(read, path)) for path in paths]


def _find_slices(pydicom: Any, folder: Path) -> list[_Slice]:
    found = [_quietly(path, partial(_read_header, pydicom, path)) for path in _files(folder)]
    slices = [slice_ for slice_ in found if slice_ is not None]
    if not slices:
        raise DataError(f"{folder} holds no DICOM images", fix="correct the path")
    _check_alike(folder, slices)
    return slices


def _files(folder: Path) -> list[Path]:
    found = sorted(
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
    )
    if len(found) > MAX_SLICES:
        raise DataError(
            f"{folder} holds {len(found):,} files, more than the {MAX_SLICES:,} of a series",
            fix="put each series into a folder of its own",
        )
    return found


def _read_header(pydicom: Any, path: Path) -> _Slice | None:
    """Return the header of an image; `None` for what is no image."""
    with path.open("rb") as file:
        is_dicom = file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC
    if not is_dicom:
        if path.suffix.lower() == ".dcm":
            raise DataError(
                f"{path} is called .dcm and is no DICOM file",
                fix="copy it again from its source, or remove it",
            )
        return None
    header = pydicom.dcmread(path, stop_before_pixels=True)
    if "Rows" not in header or "Columns" not in header:
        kind = getattr(header.file_meta.get("MediaStorageSOPClassUID"), "name", "")
        if "Image Storage" in str(kind):
            raise DataError(
                f"{path} lacks the size of its image: it is truncated",
                fix="copy it again from its source",
            )
        return None  # a report, a plan, an index
    if "ImagePositionPatient" not in header and int(header.get("NumberOfFrames", 1) or 1) > 1:
        raise DataError(
            f"{path} holds {header.NumberOfFrames} frames in one file, which are not read yet",
            fix="convert it to NIfTI, or to one file a slice",
        )
    missing = [name for name in _NEEDED if header.get(name) in (None, "")]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)}: its place in the patient is unknown",
            fix="leave out what is no slice of the series (scouts, screenshots)",
        )
    thickness = header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 0
    found = _Slice(
        path,
        str(header.SeriesInstanceUID),
        str(header.get("PatientID", "")),
        str(header.get("FrameOfReferenceUID", "")),
        (int(header.Rows), int(header.Columns)),
        tuple(map(float, header.PixelSpacing)),
        tuple(map(float, header.ImagePositionPatient)),
        tuple(map(float, header.ImageOrientationPatient)),
        float(thickness),
        str(header.get("Modality", "")),
    )
    _check_slice(header, found)
    return found


def _check_slice(header: Any, found: _Slice) -> None:
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise DataError(
            f"{found.path} has {header.SamplesPerPixel} samples a pixel: it is a picture in colour",
            fix="leave screenshots and renderings out",
        )
    if header.get("PhotometricInterpretation", "MONOCHROME2") != "MONOCHROME2":
        raise DataError(
            f"{found.path} is stored as {header.PhotometricInterpretation}, not MONOCHROME2",
            fix="convert it with your viewer or archive",
        )
    numbers = [*found.pixel_spacing, *found.position, *found.orientation]
    if len(numbers) != 11 or not np.isfinite(numbers).all() or min(numbers[:2]) <= 0:
        raise DataError(
            f"{found.path}: spacing, position or orientation are not the numbers they should be",
            fix="copy it again from its source",
        )
    across, down = np.array(numbers[5:8]), np.array(numbers[8:])
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    if not np.allclose(lengths, 1, atol=1e-3) or abs(across @ down) > 1e-3:
        raise DataError(
            f"{found.path}: the directions of rows and columns are no right angle",
            fix="copy it again from its source",
        )


def _check_alike(folder: Path, slices: Sequence[_Slice]) -> None:
    """Refuse slices that are not of one series, or not of one geometry."""
    for what, field, fix in (
        ("series", "series", "put each series into a folder of its own"),
        ("patients", "patient", "put each patient into a folder"),
        ("frames of reference", "frame", "take one of them"),
    ):
        counts = Counter(getattr(slice_, field) for slice_ in slices)
        if len(counts) > 1:  # how many, never which: they identify
            shown = ", ".join(str(count) for _, count in counts.most_common(5))
            raise DataError(f"{folder} holds {len(counts)} {what}, of {shown} slices", fix=fix)
    first = slices[0]
    for field, digits in (("size", 0), ("pixel_spacing", 4), ("orientation", 3)):
        expected = np.round(getattr(first, field), digits)
        for other in slices[1:]:
            if not np.array_equal(np.round(getattr(other, field), digits), expected):
                raise DataError(
                    f"slices of {folder} differ in {field.replace('_', ' ')}:"
                    f" {getattr(first, field)} of {first.path.name}, {getattr(other, field)} of"
                    f" {other.path.name}",
                    fix="leave out what does not belong to the series",
                )


def _place(folder: Path, slices: Sequence[_Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of the slices, and the affine of the volume."""
    first = slices[0]
    across, down = np.array(first.orientation).reshape(2, 3)
    normal = np.cross(across, down)
    places = np.array([slice_.position for slice_ in slices])
    heights = places @ normal
    order = np.argsort(heights, kind="stable")
    names = [slices[index].path.name for index in order.tolist()]
    step = _step(folder, heights[order], names, first.thickness)
    beside = places - np.outer(heights, normal)
    drift = np.linalg.norm(beside - beside[order[0]], axis=1).max()
    if drift > max(0.5, 0.02 * np.ptp(heights)):
        raise DataError(
            f"slices of {folder} are shifted beside each other by up to {drift:.1f} mm: the gantry"
            " was tilted, or they are of several scans",
            fix="resample them upright first, or separate the scans",
        )
    affine = np.eye(4)
    affine[:3, 0] = normal * step
    affine[:3, 1] = down * first.pixel_spacing[0]
    affine[:3, 2] = across * first.pixel_spacing[1]
    affine[:3, 3] = places[order[0]]
    return order, affine


def _step(folder: Path, heights: np.ndarray, names: Sequence[str], thickness: float) -> float:
    """Return the distance of neighbouring slices in mm."""
    if len(heights) == 1:
        if thickness <= 0:
            raise DataError(
                f"{folder} holds a single slice of unknown thickness", fix="give the whole series"
            )
        return thickness
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    if (twice := np.flatnonzero(gaps < max(0.01, 0.02 * usual))).size:
        at = int(twice[0])
        raise DataError(
            f"{len(twice)} slices of {folder} are there twice, such as {names[at]} and"
            f" {names[at + 1]} at {heights[at]:g} mm",
            fix="remove the copies, or separate repeated scans",
        )
    tolerance = max(0.02, 0.02 * usual)
    if (np.abs(gaps - usual) <= tolerance).all():
        return float(np.ptp(heights) / len(gaps))
    at, multiples = int(np.argmax(gaps)), gaps / gaps.min()
    if np.all(np.abs(multiples - np.rint(multiples)) * gaps.min() <= 2 * tolerance):
        raise DataError(
            f"{int((np.rint(multiples) - 1).sum())} slices of {folder} are missing, such as"
            f" between {heights[at]:g} and {heights[at + 1]:g} mm ({names[at]}, {names[at + 1]})",
            fix="fetch the whole series again",
        )
    raise DataError(
        f"slices of {folder} are {gaps.min():g} to {gaps.max():g} mm apart: their spacing is mixed",
        fix="use the part, or the reconstruction, of one spacing",
    )


def _read_pixels(pydicom: Any, path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return a slice after rescale, float32 (H, W)."""
    image = pydicom.dcmread(path)
    if "PixelData" not in image:
        raise DataError(f"{path} has no pixels: it is truncated", fix="copy it again")
    if image.file_meta.TransferSyntaxUID in _UNCOMPRESSED:
        num_bytes = size[0] * size[1] * (int(image.BitsAllocated) // 8)
        check_holds(num_bytes, len(image.PixelData), str(path))
    pixels = image.pixel_array
    if pixels.shape != size:
        raise DataError(
            f"{path} holds pixels {pixels.shape}, its header says {size}",
            fix="copy it again from its source",
        )
    slope, intercept = image.get("RescaleSlope"), image.get("RescaleIntercept")
    if slope is None or intercept is None:
        if image.get("Modality") == "CT":
            raise DataError(
                f"{path} is CT without RescaleSlope and RescaleIntercept: its HU are unknown",
                fix="export the series anew from the scanner or archive",
            )
        slope, intercept = 1.0, 0.0
    slope, intercept = float(slope), float(intercept)
    if not np.isfinite([slope, intercept]).all() or slope <= 0:
        raise DataError(
            f"{path} has RescaleSlope={slope:g}, RescaleIntercept={intercept:g}",
            fix="export the series anew from the scanner or archive",
        )
    return pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _check_hounsfield(folder: Path, voxels: np.ndarray) -> None:
    """Refuse CT in which there is no air, or what no matter reaches: its rescale is wrong."""
    low, high = float(voxels.min()), float(voxels.max())
    if low > -200 or high > DENSEST_LIMIT_HU or high < -500:
        raise DataError(
            f"{folder} is CT from {low:g} to {high:g} HU after rescale: air is about -1000, bone"
            " up to 3000",
            fix="the rescale of the headers is wrong: export the series anew",
        )


def _quietly(path: Path, read: Callable[[], Any]) -> Any:
    """Return what `read` returns, without pydicom's warnings; its errors name no more than a file.

    Raises:
        DataError: pydicom cannot read it.
    """
    # one thread at a time: the filters of warnings are those of the whole process
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote the header
        try:
            return read()
        except DataError:
            raise
        except Exception as error:
            # its message may quote the header, which may identify: hence without the cause
            kind = type(error).__name__
        raise DataError(
            f"{path} cannot be read as DICOM ({kind}): it is damaged, or compressed in a way that"
            " is not installed",
            fix="copy it again from its source; for compressed pixels: pip install pylibjpeg"
            " pylibjpeg-libjpeg pylibjpeg-openjpeg",
        )
