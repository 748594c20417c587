"""A folder of DICOM slices -> one volume in HU, or the reason why it is none.

Slices are sorted by their position along the normal of their plane, never by name or number.
Messages name files and positions, never what a header says of the patient.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import check_holds, check_size
from deepseek.errors import DataError
from deepseek.medical.dicom_folders import files_of, only_series
from deepseek.medical.dicom_header import SliceHeader, open_dicom, open_whole, quietly, read_header
from deepseek.medical.hounsfield import PADDING_HU, check_hounsfield
from deepseek.registry import import_extra

MAX_SLICES = 10_000
MISSING_FROM = 1.9
"""Steps of so many thicknesses, from which slices are missing between those that are there."""
_HU_SAMPLE = 2**21
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")


def read_series(folder: Path, max_voxels: int) -> Volume:
    """Read the only series in or below a folder, float32 (1, D, H, W); of CT in Hounsfield units.

    Files that are no DICOM images are passed over, unless they are called `.dcm`. The rescale may
    differ from slice to slice, as in PET, but not in CT.

    Raises:
        DataError: there is no series or more than one; slices are missing, there twice, or differ
            in size, spacing, direction, modality or kernel; pixels are truncated, or CT has no
            sensible rescale.
        MissingExtraError: pydicom is not installed.
    """
    import_extra("pydicom", "medical")
    folder = only_series(folder)
    slices = _find_slices(folder)
    size = slices[0].size
    check_size((len(slices), *size), max_voxels, str(folder))
    order, affine = _place(folder, slices)
    voxels = np.empty((1, len(slices), *size), np.float32)
    # an odd step: an even one would see the same columns of every row
    every, seen = max(1, voxels.size // _HU_SAMPLE) | 1, []
    for number, index in enumerate(order.tolist()):
        found = slices[index]
        stored = quietly(found.path, partial(_read_pixels, found))
        slope, intercept = found.rescale or (1.0, 0.0)
        rescaled = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        voxels[0, number] = rescaled
        seen.append(rescaled.ravel()[::every][~found.is_padding(stored.ravel()[::every])])
    if slices[0].modality == "CT":
        limits = float(voxels.min()), float(voxels.max())
        check_hounsfield(folder, limits, np.concatenate(seen))
        np.maximum(voxels, PADDING_HU, out=voxels)
    return Volume(voxels, affine)


def read_headers(folder: Path) -> list[Any]:
    """Return the headers of the slices of a series as pydicom has them, in the order of `D`.

    Raises:
        DataError: as `read_series`.
        MissingExtraError: pydicom is not installed.
    """
    folder = only_series(folder)
    slices = _find_slices(folder)
    order, _ = _place(folder, slices)
    paths = [slices[index].path for index in order.tolist()]
    return [quietly(path, partial(open_dicom, path)) for path in paths]


def _find_slices(folder: Path) -> list[SliceHeader]:
    files = files_of(folder)
    if len(files) > MAX_SLICES:
        raise DataError(
            f"{folder} holds {len(files):,} files, more than the {MAX_SLICES:,} of a series",
            fix="put each series into a folder of its own",
        )
    found = [read_header(path) for path in files]
    slices = [slice_ for slice_ in found if slice_ is not None]
    if not slices:
        raise DataError(f"{folder} holds no DICOM images", fix="correct the path")
    _check_alike(folder, slices)
    return slices


def _check_alike(folder: Path, slices: Sequence[SliceHeader]) -> None:
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
    _check_one_kind(folder, slices)
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


def _check_one_kind(folder: Path, slices: Sequence[SliceHeader]) -> None:
    """Refuse slices of several modalities, kernels or rescales, and copies of one."""
    for what, field in (("modalities", "modality"), ("kernels of reconstruction", "kernel")):
        counts = Counter(getattr(slice_, field) for slice_ in slices if getattr(slice_, field))
        if len(counts) > 1:
            shown = ", ".join(f"{count} of {name[:16]!r}" for name, count in counts.most_common(5))
            raise DataError(
                f"slices of {folder} have {len(counts)} {what}: {shown}",
                fix="put the slices of each into a folder of their own",
            )
    first_of: dict[str, Path] = {}
    for slice_ in slices:
        copied = first_of.setdefault(slice_.instance, slice_.path) if slice_.instance else None
        if copied not in (None, slice_.path):
            raise DataError(
                f"slices of {folder} are copies of one: {copied.name} and {slice_.path.name} have"
                " the same SOPInstanceUID",
                fix="remove the copies, or fetch the whole series again",
            )
    rescales = Counter(slice_.rescale for slice_ in slices)
    if slices[0].modality == "CT" and len(rescales) > 1:
        shown = ", ".join(
            f"{each[0]:g} and {each[1]:g} in {count}"
            for each, count in rescales.most_common(3) if each is not None
        )  # fmt: skip
        raise DataError(
            f"slices of {folder} differ in RescaleSlope and RescaleIntercept ({shown} slices):"
            " CT has one scale",
            fix="export the series anew from the scanner or archive",
        )


def _place(folder: Path, slices: Sequence[SliceHeader]) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of the slices, and the affine of the volume."""
    first = slices[0]
    across, down = np.array(first.orientation).reshape(2, 3)
    normal = np.cross(across, down)
    places = np.array([slice_.position for slice_ in slices])
    heights = places @ normal
    order = np.argsort(heights, kind="stable")
    names = [slices[index].path.name for index in order.tolist()]
    step = _step(folder, heights[order], names, first.thickness)
    if len(slices) > 1:
        _check_none_between(folder, [slices[index] for index in order.tolist()], step)
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


def _check_none_between(folder: Path, slices: Sequence[SliceHeader], step: float) -> None:
    """Refuse a series of which slices were left out evenly: every second, or third."""
    thickness = slices[0].thickness
    if 0 < MISSING_FROM * thickness <= step:
        raise DataError(
            f"slices of {folder} are {step:g} mm apart and {thickness:g} mm thick: about"
            f" {round(step / thickness) - 1} are missing between every two",
            fix="fetch the whole series again; of a scan with gaps, convert it to NIfTI",
        )
    numbers = [slice_.number for slice_ in slices if slice_.number is not None]
    steps = set(np.abs(np.diff(numbers)).tolist())
    # elsewhere numbers may count echoes or times as well
    if slices[0].modality != "CT" or len(numbers) < len(slices) or len(steps) > 1:
        return
    if (every := steps.pop()) > 1:
        raise DataError(
            f"{(every - 1) * (len(slices) - 1)} slices of {folder} are missing: InstanceNumber"
            f" goes from {min(numbers)} to {max(numbers)} in steps of {every}",
            fix="fetch the whole series again; of a scan with gaps, convert it to NIfTI",
        )


def _read_pixels(found: SliceHeader) -> np.ndarray:
    """Return a slice as it is stored, (H, W)."""
    path, size = found.path, found.size
    image = open_whole(path)
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
    return pixels
