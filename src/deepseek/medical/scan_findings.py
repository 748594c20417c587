"""What a detector finds in scans: rows, a file of them, and how many of the known findings it hit.

Places are millimetres in the patient, LPS. Shapes: F findings, P centres of a scan.
"""

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from deepseek.datasets.volume import Volume
from deepseek.medical.froc import UNKNOWN_DIAMETER_MM, Findings, Froc, Marks, match_marks
from deepseek.medical.nodule_cubes import ball_diameter
from deepseek.models.volume_detector import Centers
from deepseek.registry import import_extra

FILE_NAME = "findings.csv"
COLUMNS = ("scan", "x", "y", "z", "diameter_mm", "score")
PART_COLUMNS = ("scan", "x", "y", "z", "diameter_mm", "volume_ml", "class")
_DIGITS = {"score": 4, "volume_ml": 4}


def finding_rows(found: Centers, known: Findings | None = None) -> dict[str, list[dict]]:
    """Return `findings`, JSON-able, the highest score first, and `known` ones where they are.

    A finding has `x`, `y`, `z`, `diameter_mm` and `score`, and what else is told of it; where
    others are known `is_hit`: whether it hits one, `None` where only one that does not count. A
    known one has `is_excluded`, and `score`, the highest that hit it, `None` where it is missed.
    """
    rows = [
        {**_place(point), "diameter_mm": size, "score": score}
        for point, size, score in zip(
            found.points_mm.tolist(), found.diameters_mm.tolist(), found.scores.tolist(),
            strict=True,
        )
    ]  # fmt: skip
    for name, values in found.told.items():
        for row, value in zip(rows, values.tolist(), strict=True):
            row[name] = value
    if known is None:
        return {"findings": rows}
    apart = np.linalg.norm(known.centers_mm[:, None] - found.points_mm[None], axis=2)
    sizes = np.where(known.diameters_mm < 0, UNKNOWN_DIAMETER_MM, known.diameters_mm)
    hits = apart < sizes[:, None] / 2
    for row, hit in zip(rows, hits.T, strict=True):
        counts = bool(hit[~known.is_excluded].any())
        row["is_hit"] = None if hit.any() and not counts else counts
    listed = zip(
        known.centers_mm.tolist(), known.diameters_mm.tolist(), known.is_excluded.tolist(), hits,
        strict=True,
    )  # fmt: skip
    there = [
        {
            **_place(point), "diameter_mm": size, "is_excluded": excluded,
            "score": float(found.scores[hit].max()) if hit.any() else None,
        }
        for point, size, excluded, hit in listed
    ]  # fmt: skip
    return {"findings": rows, "known": there}


def _place(point: list[float]) -> dict[str, float]:
    return dict(zip("xyz", point, strict=True))


def findings_of_labels(labels: Volume) -> Findings:
    """Return the connected parts of what is not class 0: their middles, and diameters of balls.

    Raises:
        MissingExtraError: scipy is missing.
    """
    ndimage = import_extra("scipy.ndimage", "medical")
    parts, count = ndimage.label(labels.voxels[0] > 0, np.ones((3, 3, 3)))
    numbers = np.arange(1, count + 1)
    middles = np.array(ndimage.center_of_mass(parts > 0, parts, numbers)).reshape(-1, 3)
    voxel_mm3 = abs(np.linalg.det(labels.affine[:3, :3]))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * voxel_mm3
    return Findings(labels.to_mm(middles), ball_diameter(sizes))


def parts_of_labels(labels: Volume, class_names: Sequence[str]) -> list[dict]:
    """Return the connected parts of each class but the first, the largest first, JSON-able.

    A part has `x`, `y`, `z`, its middle in millimetres, `diameter_mm` of a ball of its volume,
    `volume_ml`, and `class`.

    Raises:
        MissingExtraError: scipy is missing.
    """
    rows = []
    for number, name in enumerate(class_names):
        voxels = labels.voxels == number
        if number == 0 or not voxels.any():
            continue
        found = findings_of_labels(Volume(voxels, labels.affine))
        rows += [
            {
                **_place(point), "diameter_mm": size, "volume_ml": math.pi * size**3 / 6000,
                "class": name,
            }
            for point, size in zip(
                found.centers_mm.tolist(), found.diameters_mm.tolist(), strict=True
            )
        ]  # fmt: skip
    return sorted(rows, key=lambda row: -row["volume_ml"])


class FindingsFile:
    """A CSV file of findings or parts, a line each, written as scans are done.

    Args:
        path: of the file, which must not be there.
        columns: `scan`, and what is written of each.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str] = COLUMNS) -> None:
        self._path, self._columns = Path(path), tuple(columns)
        with self._open("x") as file:
            csv.writer(file).writerow(self._columns)

    def add(self, scan: str, found: Iterable[Mapping]) -> None:
        """Add the findings or the parts of a scan."""
        with self._open("a") as file:
            lines = csv.writer(file)
            for each in found:
                lines.writerow([scan, *(_cell(name, each[name]) for name in self._columns[1:])])

    def _open(self, mode: str) -> IO[str]:
        # names of files that are no UTF-8 hold lone surrogates
        return self._path.open(mode, newline="", encoding="utf-8", errors="backslashreplace")


def _cell(name: str, value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.{_DIGITS.get(name, 2)}f}"


def match_rows(rows: Iterable[Mapping]) -> Froc | None:
    """Return how findings match what is known, of scans where it is known; `None` without any."""
    findings, marks = {}, {}
    for number, row in enumerate(row for row in rows if "known" in row):
        known, said = row["known"], row["findings"]
        findings[str(number)] = Findings(
            np.array([[each[axis] for axis in "xyz"] for each in known]),
            np.array([each["diameter_mm"] for each in known]),
            np.array([each["is_excluded"] for each in known], bool),
        )
        marks[str(number)] = Marks(
            np.array([[each[axis] for axis in "xyz"] for each in said]),
            np.array([each["score"] for each in said]),
        )
    if not any((~each.is_excluded).any() for each in findings.values()):
        return None
    return match_marks(findings, marks)


def finding_scores(rows: Iterable[Mapping]) -> dict[str, float]:
    """Return CPM, sensitivity at one false mark a scan, and what that rate is per litre.

    Empty where nothing is known. Litres are of whole scans, the air beside a patient too.
    """
    rows = list(rows)
    froc = match_rows(rows)
    if froc is None:
        return {}
    litres = sum(row.get("litres", 0.0) for row in rows if "known" in row)
    found = {"cpm": froc.cpm, "sensitivity_at_1": float(froc.sensitivity([1.0])[0])}
    return found | ({"false_per_litre_at_1": froc.num_scans / litres} if litres else {})
