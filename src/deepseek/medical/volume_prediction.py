"""Scans in, masks or findings out: NIfTI on the voxels of each scan, DICOM segmentations of series.

Shapes: D H W voxels, K classes.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepseek.datasets.nifti import write_nifti
from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import read_volume
from deepseek.datasets.volume_store import laid_on, read_labels
from deepseek.errors import ConfigError, DataError
from deepseek.medical.calibration import VoxelCalibration
from deepseek.medical.dicom_segmentation import check_abnormal, write_dicom_segmentation
from deepseek.medical.nodule_scorer import NoduleScorer
from deepseek.medical.scan_findings import (
    COLUMNS,
    FILE_NAME,
    PART_COLUMNS,
    FindingsFile,
    finding_rows,
    findings_of_labels,
    parts_of_labels,
)
from deepseek.medical.scans import Scan
from deepseek.medical.segmentation_scores import dice_by_class, hausdorff_mm
from deepseek.models.volume_detector import Centers, VolumeDetector
from deepseek.models.volume_segmenter import VolumeSegmenter, measure_ml


@dataclass(frozen=True, eq=False)
class Result:
    """What was found in a scan.

    Attributes:
        scan: it.
        volume: as it was read.
        found: class of each voxel, or centres.
        labels: that were known, on the voxels of the scan.
        row: as `predict_scans` yields it.
    """

    scan: Scan
    volume: Volume
    found: Volume | Centers
    labels: Volume | None
    row: dict


def predict_scans(
    predictor: VolumeSegmenter | VolumeDetector,
    scans: Iterable[Scan],
    output: str | Path | None = None,
    *,
    scorer: NoduleScorer | None = None,
    is_strict: bool = False,
    abnormal: Sequence[str] | None = None,
    calibration: VoxelCalibration | None = None,
    on_windows: Callable[[int, int], None] = lambda done, total: None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> Iterator[dict]:
    """Yield what was found in each scan, JSON-able, and write it.

    A row has `file`, `scan`, its name in `findings.csv`, and either `error`, or what was found. Of
    a segmenter: `ml`, the millilitres of each class but the first; where labels are known `dice`
    and `hausdorff95_mm` of each, `None` where a class is not there or has no distance; and the
    files written, `mask` and, of a DICOM series, `segmentation`, unless its headers lack what one
    needs, which is a warning; with `output` or `scorer` also `parts`, as `parts_of_labels` returns
    them. Of a detector: what `finding_rows` returns, and `litres` of the scan; findings are known
    from `annotations.csv`, or else as the connected parts of labels.

    Args:
        predictor: finds the classes, or the centres; a scan of more than its `max_voxels` is
            refused unread.
        scans: to be predicted.
        output: folder of `findings.csv`, and of a segmenter of `NAME.nii.gz` and `NAME.dcm`;
            `None`: nothing is written.
        scorer: adds its scores to each finding or part.
        is_strict: a scan that cannot be read ends it; else its row has the error.
        abnormal: classes that a DICOM segmentation calls so; see `write_dicom_segmentation`.
        calibration: counts the probabilities of voxels of a segmenter, where labels are known.
        on_windows: told how many windows of a scan are done, and of how many.
        on_result: given what was found in each scan that could be read, with its voxels.

    Raises:
        ConfigError: a file to be written is there already, `abnormal` names no class, or the
            scorer has a score that the detector tells itself.
        DataError: a scan cannot be read, and that is not allowed.
    """
    scans, folder = list(scans), None if output is None else Path(output)
    names = predictor.spec.class_names
    check_abnormal(abnormal or (), names)
    told = predictor.told_names if isinstance(predictor, VolumeDetector) else ()
    more = _more_columns(told, scorer)
    table = None
    if folder is not None:
        _check_new(folder, scans)
        folder.mkdir(parents=True, exist_ok=True)
        columns = COLUMNS if isinstance(predictor, VolumeDetector) else PART_COLUMNS
        table = FindingsFile(folder / FILE_NAME, [*columns, *more])
    for scan in scans:
        try:
            result = _find(predictor, scan, calibration, on_windows)
            row, found = result.row, result.found
            if isinstance(found, Volume) and (table or scorer):
                row["parts"] = parts_of_labels(found, names)
            if scorer is not None:
                _add_scores(scorer, result)
            if isinstance(found, Volume) and folder is not None:
                row |= _write_mask(scan, found, folder, names, abnormal)
        except DataError as error:
            if is_strict:
                raise
            yield {**_named(scan), "error": error.message}
            continue
        if table is not None:
            table.add(scan.name, _listed(row))
        on_result(result)
        yield row


def _find(
    predictor: VolumeSegmenter | VolumeDetector,
    scan: Scan,
    calibration: VoxelCalibration | None,
    on_windows: Callable[[int, int], None],
) -> Result:
    max_voxels = predictor.options.max_voxels
    volume = read_volume(scan.image, max_voxels=max_voxels)
    labels = _known_labels(scan, volume, max_voxels)
    where = str(scan.image)
    if calibration and labels and isinstance(predictor, VolumeSegmenter):
        found = predictor.find_beside(
            volume, labels, calibration.update, where=where, on_windows=on_windows
        )
    else:
        found = predictor(volume, where=where, on_windows=on_windows)
    row = _row(scan, volume, found, labels, predictor.spec.class_names)
    return Result(scan, volume, found, labels, row)


def _named(scan: Scan) -> dict[str, str]:
    return {"file": str(scan.image), "scan": scan.name}


def _listed(row: dict) -> list[dict]:
    """Return the findings of a row, or its parts."""
    return row.get("findings", row.get("parts", []))


def _add_scores(scorer: NoduleScorer, result: Result) -> None:
    outlines = result.found if isinstance(result.found, Volume) else None
    listed = _listed(result.row)
    scores = scorer.score(result.volume, listed, outlines)
    for each, own in zip(listed, scores, strict=True):
        each |= own


def _row(
    scan: Scan, volume: Volume, found: Volume | Centers, labels: Volume | None,
    names: tuple[str, ...],
) -> dict:  # fmt: skip
    if isinstance(found, Volume):
        return _mask_row(scan, found, labels, names)
    voxel_mm3 = abs(np.linalg.det(volume.affine[:3, :3]))
    litres = volume.voxels[0].size * voxel_mm3 / 1e6
    return {**_finding_row(scan, found, labels), "litres": float(litres)}


def _more_columns(told: Sequence[str], scorer: NoduleScorer | None) -> list[str]:
    """Return the scores of a detector and of a scorer, which must not have one name."""
    added = [] if scorer is None else list(scorer.names)
    twice = [name for name in added if name in told]
    if twice:
        raise ConfigError(
            f"the detector tells {', '.join(twice)} itself, and the scores have it too: which is"
            " meant?",
            fix="leave the scores (--scores) out, or fit a NoduleScorer on other names",
        )
    return [*told, *added]


def _check_new(output: Path, scans: list[Scan]) -> None:
    names = [f"{scan.name}{suffix}" for scan in scans for suffix in (".nii.gz", ".dcm")]
    for name in (FILE_NAME, *names):
        if (output / name).exists():
            raise ConfigError(
                f"{output / name} is there already", fix="give another folder, or remove it"
            )


def _known_labels(scan: Scan, volume: Volume, max_voxels: int) -> Volume | None:
    if scan.labels is None:
        return None
    return laid_on(volume, read_labels(scan.labels, max_voxels), scan.labels)


def _finding_row(scan: Scan, found: Centers, labels: Volume | None) -> dict:
    known = scan.findings
    if known is None and labels is not None:
        known = findings_of_labels(labels)
    return {**_named(scan), **finding_rows(found, known)}


def _mask_row(scan: Scan, found: Volume, known: Volume | None, names: tuple[str, ...]) -> dict:
    measured = measure_ml(found, len(names))
    row: dict = {**_named(scan), "ml": dict(zip(names[1:], measured[1:], strict=True))}
    return row if known is None else row | _scores(found, known, names)


def _write_mask(
    scan: Scan, found: Volume, output: Path, names: tuple[str, ...], abnormal: Sequence[str] | None
) -> dict:
    written = {"mask": str(output / f"{scan.name}.nii.gz")}
    write_nifti(Path(written["mask"]), found)
    if scan.image.is_dir():
        segmentation = output / f"{scan.name}.dcm"
        try:
            write_dicom_segmentation(segmentation, found, scan.image, names, abnormal)
        except DataError as error:
            warnings.warn(f"{segmentation} is not written: {error.message}", stacklevel=3)
        else:
            written["segmentation"] = str(segmentation)
    return written


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
