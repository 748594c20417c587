"""Scans in, masks out: NIfTI on the voxels of each scan, DICOM segmentations of DICOM series.

Shapes: D H W voxels, K classes.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepseek.datasets.nifti import write_nifti
from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import DEFAULT_MAX_VOXELS, format_of, read_volume, stem_of
from deepseek.datasets.volume_source import FOLDERS, find_volumes
from deepseek.datasets.volume_store import check_places, read_labels
from deepseek.errors import ConfigError, DataError
from deepseek.medical.dicom_segmentation import write_dicom_segmentation
from deepseek.medical.segmentation_scores import dice_by_class, hausdorff_mm
from deepseek.models.volume_segmenter import VolumeSegmenter, measure_ml


@dataclass(frozen=True)
class Scan:
    """A volume to be predicted, and its labels where they are known; unread."""

    image: Path
    labels: Path | None = None

    @property
    def name(self) -> str:
        """What its results are called."""
        return self.image.resolve().name if self.image.is_dir() else stem_of(self.image)


def find_scans(paths: Iterable[str | Path]) -> list[Scan]:
    """Return the volumes at some paths, in an order that is always the same.

    Args:
        paths: files of volumes; folders of one DICOM series, of files, or of folders with a series
            each; or what `VolumeDataset` takes, with labels.

    Raises:
        DataError: a path has none; or two have the same name, and their results would have.
    """
    scans = [scan for path in paths for scan in _scans_at(Path(path))]
    twice = [name for name, count in Counter(scan.name for scan in scans).items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} names of volumes are there twice, such as {twice[0]}",
            fix="predict them one after the other, into different folders",
        )
    return scans


def _scans_at(path: Path) -> list[Scan]:
    is_set = any(
        (path / images).is_dir() and (path / labels).is_dir() for images, labels in FOLDERS
    )
    if is_set or path.suffix.lower() == ".csv":
        return [Scan(pair.image, pair.labels) for pair in find_volumes(path).pairs]
    if not path.is_dir():
        return [Scan(path)]
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    volumes = [entry for entry in entries if entry.is_file() and format_of(entry)]
    if volumes:
        return [Scan(entry) for entry in volumes]
    folders = [entry for entry in entries if entry.is_dir()]
    is_series = not folders or any(entry.suffix.lower() == ".dcm" for entry in entries)
    return [Scan(path)] if is_series else [Scan(folder) for folder in folders]


def predict_scans(
    segmenter: VolumeSegmenter,
    scans: Iterable[Scan],
    output: str | Path | None = None,
    *,
    is_strict: bool = False,
    max_voxels: int = DEFAULT_MAX_VOXELS,
    on_windows: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[dict]:
    """Yield what was found in each scan, JSON-able, and write its mask.

    A row has `file` and either `error`, or `ml`, the millilitres of each class but the first; where
    labels are known `dice` and `hausdorff95_mm` of each, `None` where a class is not there or has
    no distance; and the files written, `mask` and, of a DICOM series, `segmentation`.

    Args:
        segmenter: finds the classes.
        scans: to be predicted.
        output: folder of `NAME.nii.gz` and `NAME.dcm`; `None`: nothing is written.
        is_strict: a scan that cannot be read ends it; else its row has the error.
        max_voxels: of a scan, above which it is refused unread.
        on_windows: told how many windows of a scan are done, and of how many.

    Raises:
        ConfigError: a file to be written is there already.
        DataError: a scan cannot be read, and that is not allowed.
    """
    scans, folder = list(scans), None if output is None else Path(output)
    if folder is not None:
        _check_new(folder, scans)
        folder.mkdir(parents=True, exist_ok=True)
    for scan in scans:
        try:
            yield _predict(segmenter, scan, folder, max_voxels, on_windows)
        except DataError as error:
            if is_strict:
                raise
            yield {"file": str(scan.image), "error": error.message}


def _check_new(output: Path, scans: list[Scan]) -> None:
    for scan in scans:
        for suffix in (".nii.gz", ".dcm"):
            if (output / f"{scan.name}{suffix}").exists():
                raise ConfigError(
                    f"{output / scan.name}{suffix} is there already",
                    fix="give another folder, or remove it",
                )


def _predict(
    segmenter: VolumeSegmenter,
    scan: Scan,
    output: Path | None,
    max_voxels: int,
    on_windows: Callable[[int, int], None],
) -> dict:
    volume = read_volume(scan.image, max_voxels=max_voxels)
    found = segmenter(volume, where=str(scan.image), on_windows=on_windows)
    names = segmenter.spec.class_names
    measured = measure_ml(found, len(names))
    row: dict = {"file": str(scan.image), "ml": dict(zip(names[1:], measured[1:], strict=True))}
    if scan.labels is not None:
        known = read_labels(scan.labels, max_voxels)
        check_places(volume, known, scan.labels)
        row |= _scores(found, known, names)
    if output is not None:
        row["mask"] = str(output / f"{scan.name}.nii.gz")
        write_nifti(Path(row["mask"]), found)
        if scan.image.is_dir():
            row["segmentation"] = str(output / f"{scan.name}.dcm")
            write_dicom_segmentation(Path(row["segmentation"]), found, scan.image, names)
    return row


def _scores(found: Volume, known: Volume, names: tuple[str, ...]) -> dict:
    there, here = found.voxels[0], known.voxels[0]
    dice = dice_by_class(there, here, len(names)).tolist()
    distances = [
        hausdorff_mm(there == number, here == number, found.spacing_mm)
        for number in range(1, len(names))
    ]
    return {
        "dice": dict(zip(names[1:], map(_finite, dice[1:]), strict=True)),
        "hausdorff95_mm": dict(zip(names[1:], map(_finite, distances), strict=True)),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def mean_scores(rows: Iterable[dict]) -> dict[str, float]:
    """Return the means of Dice and distance over scans and their classes; empty without labels."""
    means = {}
    kept = list(rows)
    for name in ("dice", "hausdorff95_mm"):
        values = [
            value for row in kept for value in row.get(name, {}).values() if value is not None
        ]
        if values:
            means[name] = float(np.mean(values))
    return means
