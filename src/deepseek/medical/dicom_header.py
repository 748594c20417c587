"""What the header of a DICOM slice says of its image, or why the slice cannot be used.

Messages name files and positions; never what a header says of the patient, and pydicom's own
messages, which quote headers, are not passed on.

Standard: DICOM PS3.3, C.7.6.2 (image plane) and C.11.1 (rescale).
"""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deepseek.errors import DataError, MissingExtraError
from deepseek.registry import import_extra

_MAGIC_AT, _MAGIC = 128, b"DICM"
_FILTERS = threading.Lock()
_NEEDED = (
    "SeriesInstanceUID", "Rows", "Columns", "BitsAllocated", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient",
)  # fmt: skip
_CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1")
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205")
"""Transfer syntaxes of which the whole data set is deflated: explicit, JPIP, JPIP with HTJ2K."""
_HEAD_BYTES = 4096
_BARE_GROUPS = (b"\x02\x00", b"\x08\x00")
"""Of the first element of a file without preamble: of what is said of the file, or of the data."""
_BARE_VRS = (b"UL", b"CS", b"UI", b"DA", b"OB", b"SH", b"LO")
_BITS = (8, 16, 32)
_SLOPES = (0.5, 2.0)
"""Scanners write CT with slope 1; far from it, the file was scaled for something else."""


@dataclass(frozen=True)
class SliceHeader:
    """What is needed of a header; lengths in mm.

    Attributes:
        path: of the file.
        series: what identifies the series; `patient`, `frame` (of reference) and `instance`
            likewise, empty where they are not said.
        number: of the slice in its series, `None` where it is not said.
        size: rows and columns.
        pixel_spacing: between rows, and between columns.
        position: x, y, z of the first pixel.
        orientation: directions of rows and columns.
        thickness: distance of slices, or how thick they are; 0 where neither is said.
        modality: such as CT.
        kernel: of the reconstruction.
        rescale: slope and intercept; `None` where they are not said.
        padding: least and greatest stored number of what was not seen; `None` where not said.
    """

    path: Path
    series: str
    patient: str
    frame: str
    instance: str
    number: int | None
    size: tuple[int, int]
    pixel_spacing: tuple[float, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    thickness: float
    modality: str
    kernel: str
    rescale: tuple[float, float] | None
    padding: tuple[int, int] | None

    def is_padding(self, stored: np.ndarray) -> np.ndarray:
        """Return which stored pixels the header calls padding, bool of the same shape."""
        low, high = self.padding or (1, 0)
        return (stored >= low) & (stored <= high)


def read_header(path: Path) -> SliceHeader | None:
    """Return the header of an image; `None` for what is no image.

    Raises:
        DataError: the file is damaged, or its image is no slice with a place in the patient.
        MissingExtraError: pydicom is not installed.
    """
    return quietly(path, partial(_read_header, path))


def open_dicom(path: Path) -> Any:
    """Return the header of a DICOM file as pydicom has it; `None` if it is none by its bytes.

    Old archives leave the preamble out: such a file is read if it begins as DICOM does and says
    what its image is.

    Raises:
        DataError: it is deflated: pydicom would inflate all of it at once, whatever the size.
        MissingExtraError: pydicom is not installed.
    """
    return open_whole(path, stop_before_pixels=True)


def open_whole(path: Path, *, stop_before_pixels: bool = False) -> Any:
    """Return a DICOM file with its pixels, likewise."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if head[:2] in _BARE_GROUPS and head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
            head += file.read()  # how it is stored may be said anywhere
    has_preamble = head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC
    if not has_preamble and not _begins_bare(head):
        return None
    pydicom = import_extra("pydicom", "medical")
    reader = import_extra("pydicom.filereader", "medical")
    said = [reader.read_file_meta_info(path).get("TransferSyntaxUID")] if has_preamble else []
    # without a preamble it is not parsed before it is known to be harmless
    if set(said) & set(_DEFLATED) or (
        not has_preamble and any(name.encode() in head for name in _DEFLATED)
    ):
        raise DataError(
            f"{path} is stored deflated, as CT is not: how large it becomes cannot be known before",
            fix="if you trust it, convert it: dcmconv --write-xfer-little FILE FILE (dcmtk)",
        )
    header = pydicom.dcmread(path, stop_before_pixels=stop_before_pixels, force=not has_preamble)
    if has_preamble:
        return header
    if "SOPClassUID" not in header:
        return None
    if "TransferSyntaxUID" not in header.file_meta:
        is_implicit, _ = header.original_encoding
        header.file_meta.TransferSyntaxUID = _IMPLICIT if is_implicit else _EXPLICIT
    return header


def _begins_bare(head: bytes) -> bool:
    """Return whether a file begins with an element of a data set, and not with a preamble."""
    if len(head) < 8 or head[:2] not in _BARE_GROUPS or head[3]:
        return False
    return head[4:6] in _BARE_VRS or int.from_bytes(head[4:8], "little") <= len(head)


def is_image(header: Any) -> bool:
    """Return whether a header is of an image, not of a report, a plan or an index."""
    kind = getattr(header.file_meta.get("MediaStorageSOPClassUID"), "name", "")
    return "Rows" in header or "Image Storage" in str(kind)


def _read_header(path: Path) -> SliceHeader | None:
    header = open_dicom(path)
    if header is None:
        if path.suffix.lower() == ".dcm":
            raise DataError(
                f"{path} is called .dcm and is no DICOM file",
                fix="copy it again from its source, or remove it",
            )
        return None
    if "Rows" not in header or "Columns" not in header:
        if is_image(header):
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
    found = _to_slice(header, path)
    _check_picture(header, found)
    _check_geometry(found)
    _check_rescale(found)
    return found


def _to_slice(header: Any, path: Path) -> SliceHeader:
    said = header.get("InstanceNumber")
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    return SliceHeader(
        path,
        str(header.SeriesInstanceUID),
        str(header.get("PatientID", "")),
        str(header.get("FrameOfReferenceUID", "")),
        str(header.get("SOPInstanceUID", "")),
        None if said in (None, "") else int(said),
        (int(header.Rows), int(header.Columns)),
        _numbers(header.PixelSpacing),
        _numbers(header.ImagePositionPatient),
        _numbers(header.ImageOrientationPatient),
        float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 0),
        _modality(header),
        str(header.get("ConvolutionKernel") or ""),
        None if slope is None or intercept is None else (float(slope), float(intercept)),
        _padding(header),
    )


def _padding(header: Any) -> tuple[int, int] | None:
    """Return the interval of PixelPaddingValue and PixelPaddingRangeLimit, in either order."""
    said = [header.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    numbers = [int(value) for value in said if value not in (None, "")]
    if said[0] in (None, ""):
        return None
    if header.get("PixelRepresentation") == 1:  # -2000 is there as 63536, too
        half = 1 << (int(header.BitsAllocated) - 1)
        numbers = [(number + half) % (2 * half) - half for number in numbers]
    return min(numbers), max(numbers)


def _numbers(value: Any) -> tuple[float, ...]:
    """Return the values of an element; one alone is not a list in pydicom."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(float, value))
    number: Any = value
    return (float(number),)


def _modality(header: Any) -> str:
    said = str(header.get("Modality") or "")
    return "CT" if not said and str(header.get("SOPClassUID")) in _CT_CLASSES else said


def _check_picture(header: Any, found: SliceHeader) -> None:
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
    bits = int(header.BitsAllocated)
    stored = int(header.get("BitsStored") or bits)
    if bits not in _BITS or not 0 < stored <= bits:
        raise DataError(
            f"{found.path} has BitsAllocated={bits}, BitsStored={stored}: these are no pixels of"
            f" {', '.join(map(str, _BITS))} bits",
            fix="copy it again from its source",
        )
    if found.modality == "CT" and bits == 8:
        raise DataError(
            f"{found.path} is CT with BitsAllocated=8: 256 greys are no HU",
            fix="export the series as it was scanned, not as a picture of its window",
        )


def _check_geometry(found: SliceHeader) -> None:
    counts = len(found.pixel_spacing), len(found.position), len(found.orientation)
    if counts != (2, 3, 6):
        raise DataError(
            f"{found.path} has {counts[0]} numbers of PixelSpacing, {counts[1]} of"
            f" ImagePositionPatient, {counts[2]} of ImageOrientationPatient, not 2, 3 and 6",
            fix="copy it again from its source",
        )
    numbers = [*found.pixel_spacing, *found.position, *found.orientation]
    if not np.isfinite(numbers).all() or min(found.pixel_spacing) <= 0:
        raise DataError(
            f"{found.path}: spacing, position or orientation are not the numbers they should be",
            fix="copy it again from its source",
        )
    across, down = np.array(found.orientation).reshape(2, 3)
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    if not np.allclose(lengths, 1, atol=1e-3) or abs(across @ down) > 1e-3:
        raise DataError(
            f"{found.path}: the directions of rows and columns are no right angle",
            fix="copy it again from its source",
        )


def _check_rescale(found: SliceHeader) -> None:
    if found.rescale is None:
        if found.modality == "CT":
            raise DataError(
                f"{found.path} is CT without RescaleSlope and RescaleIntercept: its HU are unknown",
                fix="export the series anew from the scanner or archive",
            )
        return
    slope, intercept = found.rescale
    if not np.isfinite(found.rescale).all() or slope <= 0:
        raise DataError(
            f"{found.path} has RescaleSlope={slope:g}, RescaleIntercept={intercept:g}",
            fix="export the series anew from the scanner or archive",
        )
    low, high = _SLOPES
    if found.modality == "CT" and not low < slope < high:
        raise DataError(
            f"{found.path} is CT with RescaleSlope={slope:g}, and scanners write 1: its HU are"
            " doubtful",
            fix="export the series anew; if its HU are right, convert it to NIfTI",
        )


@contextmanager
def _unlogged() -> Iterator[None]:
    logger = logging.getLogger("pydicom")
    was = logger.disabled, logger.propagate, logger.handlers
    # loggers below it hand on to it, disabled or not
    logger.disabled, logger.propagate, logger.handlers = True, False, [logging.NullHandler()]
    try:
        yield
    finally:
        logger.disabled, logger.propagate, logger.handlers = was


def quietly(path: Path, read: Callable[[], Any]) -> Any:
    """Return what `read` returns, without pydicom's warnings; its errors name no more than a file.

    Nor is anything logged.

    Raises:
        DataError: pydicom cannot read it.
    """
    # one thread at a time: the filters of warnings are those of the whole process
    with _FILTERS, warnings.catch_warnings(), _unlogged():
        warnings.simplefilter("ignore")  # they quote the header
        try:
            return read()
        except (DataError, MissingExtraError):
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
