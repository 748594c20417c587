"""Which scans are at a path, and what is known of each: labels of its voxels, findings in it."""

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deepseek.datasets.volume_file import format_of, stem_of
from deepseek.datasets.volume_source import FOLDERS, find_volumes
from deepseek.errors import DataError
from deepseek.medical.dicom_folders import find_series, patient_key, series_uid
from deepseek.medical.froc import Findings
from deepseek.medical.luna16 import luna16_scans, read_findings

ANNOTATIONS = ("annotations.csv", "annotations_excluded.csv")
_SHOWN = 3
_IMAGE_FOLDERS = {images for images, _ in FOLDERS}


@dataclass(frozen=True)
class Scan:
    """A volume to be predicted, unread, and what is known of it.

    Attributes:
        image: file, or folder of a DICOM series.
        labels: of its voxels.
        findings: in it; `None` where they are not known.
        title: what its results are called, by default as the image.
    """

    image: Path
    labels: Path | None = None
    findings: Findings | None = None
    title: str | None = None

    @property
    def name(self) -> str:
        """What its results are called."""
        if self.title is not None:
            return self.title
        return self.image.resolve().name if self.image.is_dir() else stem_of(self.image)


def find_scans(paths: Iterable[str | Path]) -> list[Scan]:
    """Return the volumes at some paths, in an order that is always the same.

    Of a folder with `annotations.csv` the findings are known: of each row that of the file, or of
    the folder, or of the series that `seriesuid` names; a scan without a row has none. Rows of
    other scans are a warning, as is a file without rows, of which nothing is known.

    Args:
        paths: files of volumes; folders of files, of a DICOM series, or of folders with series at
            any depth, such as PATIENT/STUDY/SERIES, or else with files; what `VolumeDataset` takes,
            with labels; or the folder of LUNA16.

    Raises:
        DataError: a path has none; two have the same name, and their results would have; or
            `annotations.csv` is of none of the scans beside it.
        MissingExtraError: there is DICOM, and pydicom is not installed.
    """
    scans = [scan for path in paths for scan in _scans_at(Path(path))]
    twice = [name for name, count in Counter(scan.name for scan in scans).items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} names of volumes are there twice, such as {twice[0]}",
            fix="predict them one after the other, into different folders",
        )
    return scans


def patients_of(scans: Sequence[Scan], root: Path) -> list[str]:
    """Return of each scan what its patient is called: the name of the first scan of that patient.

    Patients of DICOM are those of PatientID, which is compared and not kept. Where it is missing,
    or the same for all scans, as tools that make scans anonymous leave it, and of other files, they
    are the folders of `root`. What is in none, and each scan of LUNA16, is a patient of its own.

    Raises:
        MissingExtraError: there is DICOM, and pydicom is not installed.
    """
    said = [patient_key_of(scan.image) for scan in scans]
    is_for_all = len(set(said)) == 1
    tops = [_top(scan, root) for scan in scans]
    if len(set(tops)) == 1 and not any(scan.image.is_dir() for scan in scans):
        tops = [str(scan.image) for scan in scans]  # one folder of all files tells no patients
    first: dict[str, str] = {}
    keys = [
        f"id {key}" if key is not None and not is_for_all else f"folder {top}"
        for top, key in zip(tops, said, strict=True)
    ]
    return [first.setdefault(key, scan.name) for key, scan in zip(keys, scans, strict=True)]


def patient_key_of(image: Path) -> str | None:
    """Return what tells the patient of a series from others: a hash, `None` where none is named.

    Raises:
        MissingExtraError: there is DICOM, and pydicom is not installed.
    """
    folders = find_series(image) if image.is_dir() else []
    return patient_key(folders[0]) if folders else None


def _top(scan: Scan, root: Path) -> str:
    """Return the folder of `root` that a scan is in; a file in none, or elsewhere, as a whole."""
    if not scan.image.is_relative_to(root):
        return str(scan.image)
    parts = scan.image.relative_to(root).parts
    names = [part for part in parts if part not in _IMAGE_FOLDERS and "subset" not in part]
    return names[0] if names else str(scan.image)


def _scans_at(path: Path) -> list[Scan]:
    scans = _volumes_at(path)
    annotations, excluded = (path / name for name in ANNOTATIONS)
    if not annotations.is_file():
        return scans
    known = read_findings(annotations, excluded if excluded.is_file() else None)
    return _with_findings(scans, known, annotations)


def _with_findings(scans: Sequence[Scan], known: Mapping[str, Findings], path: Path) -> list[Scan]:
    """Return scans with the findings that a file lists by name or series."""
    if not known:
        warnings.warn(f"{path} lists no findings: what is in its scans is not known", stacklevel=4)
        return list(scans)
    keys = [listed_name(scan, known) for scan in scans]
    alone = [name for name in known if name not in keys]
    shown = ", ".join(alone[:_SHOWN])
    if len(alone) == len(known):
        here = ", ".join(scan.name for scan in scans[:_SHOWN])
        raise DataError(
            f"{path} lists findings of {len(known):,} scans ({shown}), and none of them is one of"
            f" the {len(scans):,} beside it ({here})",
            fix="in the column seriesuid, name the file, the folder or the SeriesInstanceUID of"
            " each scan; or move the list elsewhere",
        )
    if alone:
        warnings.warn(
            f"{path} lists findings of {len(alone):,} scans that are not beside it: {shown}",
            stacklevel=4,
        )
    nothing = Findings(np.empty((0, 3)), np.empty(0))
    return [
        replace(scan, findings=nothing if key is None else known[key])
        for scan, key in zip(scans, keys, strict=True)
    ]


def listed_name(scan: Scan, known: Collection[str]) -> str | None:
    """Return by which name a list has a scan: its own, or that of its series; `None` by neither.

    Raises:
        MissingExtraError: there is DICOM, and pydicom is not installed.
    """
    if scan.name in known or not scan.image.is_dir():
        return scan.name if scan.name in known else None
    uids = {series_uid(folder) for folder in find_series(scan.image)}
    return next((uid for uid in uids if uid in known), None) if len(uids) == 1 else None


def _volumes_at(path: Path) -> list[Scan]:
    is_set = any(
        (path / images).is_dir() and (path / labels).is_dir() for images, labels in FOLDERS
    )
    if is_set or path.suffix.lower() == ".csv":
        return [Scan(pair.image, pair.labels) for pair in find_volumes(path).pairs]
    if not path.is_dir():
        return [Scan(path)]
    if subsets := sorted(path.glob("subset*/")):
        return [Scan(file) for folder in subsets for file in luna16_scans(folder).values()]
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [Scan(entry) for entry in entries if entry.is_file() and format_of(entry)]
    found = [*files, *_told_apart([Scan(folder) for folder in find_series(path)], path)]
    return found or _told_apart(_files_below(path), path) or [Scan(path)]


def _files_below(path: Path) -> list[Scan]:
    """Return the files of volumes at any depth, as in PATIENT/SCAN.nii.gz; none that is hidden."""
    return [
        Scan(file)
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and format_of(file)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]


def _told_apart(found: Sequence[Scan], path: Path) -> list[Scan]:
    """Return scans below a folder; where names are there twice, named by their whole way."""
    if len({scan.name for scan in found}) == len(found):
        return list(found)
    above = [scan.image.relative_to(path).parts[:-1] for scan in found]
    return [
        replace(scan, title="_".join([*parts, scan.name]))
        for scan, parts in zip(found, above, strict=True)
    ]
