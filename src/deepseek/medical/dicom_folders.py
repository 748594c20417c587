"""Where in a tree of folders the slices of DICOM series are, such as PATIENT/STUDY/SERIES."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from deepseek.errors import DataError
from deepseek.medical.dicom_header import is_image, open_dicom, quietly

MAX_DEPTH = 8
NO_VOLUMES = frozenset((
    "CR", "DX", "MG", "PX", "IO", "RF", "XA", "US", "ES", "SEG", "PR", "KO", "SR",
    "RTDOSE", "RTIMAGE",
))  # fmt: skip
"""Modalities of pictures, and of what is said of images or planned on them."""
_SHOWN = 5


def find_series(folder: Path) -> list[Path]:
    """Return the folders in or below a folder that hold slices of DICOM series, in their order.

    Folders of X-ray pictures, segmentations, reports and doses are passed over; one in which a
    file cannot be read is not: reading it says why.

    Raises:
        DataError: a folder may not be read.
        MissingExtraError: there is DICOM, and pydicom is not installed.
    """
    try:
        folders = list(_folders(folder, MAX_DEPTH, set()))
        return [each for each in folders if _first_slice(each) is not None]
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be read: {error.strerror}",
            fix="see that it may be read",
        ) from error


def only_series(folder: Path) -> Path:
    """Return the folder in or below a folder that holds slices; without one, the folder itself.

    Raises:
        DataError: there are several.
    """
    found = find_series(folder)
    if len(found) > 1:
        shown = [str(each.relative_to(folder)) for each in found[:_SHOWN]]
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise DataError(
            f"{folder} holds {len(found)} folders of series: {', '.join(shown)}{more}",
            fix="give the one that is meant",
        )
    return found[0] if found else folder


def series_uid(folder: Path) -> str | None:
    """Return the SeriesInstanceUID of the first slice of a folder; `None` without a readable one.

    Raises:
        MissingExtraError: there is DICOM, and pydicom is not installed.
    """
    return _said(folder, "SeriesInstanceUID")


def patient_key(folder: Path) -> str | None:
    """Return what tells the patient of a folder from others: a hash, `None` where none is named.

    Raises:
        MissingExtraError: there is DICOM, and pydicom is not installed.
    """
    said = (_said(folder, "PatientID") or "").strip()
    return hashlib.blake2b(said.encode()).hexdigest() if said else None


def _said(folder: Path, name: str) -> str | None:
    first = _first_slice(folder)
    try:
        header = None if first is None else quietly(first, partial(open_dicom, first))
    except DataError:
        return None  # reading the series says why
    return None if header is None else str(header.get(name) or "") or None


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder that are not hidden, in the order of their names."""
    return sorted(
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
    )


def _folders(folder: Path, depth: int, seen: set[Path]) -> Iterator[Path]:
    place = folder.resolve()
    if place in seen:
        return  # a link that leads in a circle
    seen.add(place)
    yield folder
    if depth == 0:
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _folders(entry, depth - 1, seen)


def _first_slice(folder: Path) -> Path | None:
    """Return the first file that is a slice, or should be one and cannot be read."""
    for path in files_of(folder):
        try:
            header = quietly(path, partial(open_dicom, path))
        except DataError:
            return path
        if header is None:
            if path.suffix.lower() == ".dcm":
                return path
        elif is_image(header) and header.get("Modality") not in NO_VOLUMES:
            return path
    return None
