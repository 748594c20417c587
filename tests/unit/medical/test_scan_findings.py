import csv
import json

import numpy as np
import pytest

from deepseek.datasets.volume import Volume, make_affine
from deepseek.medical import Findings, find_scans, predict_scans
from deepseek.medical.luna16 import read_findings
from deepseek.medical.phantom_files import write_phantom
from deepseek.medical.phantoms import make_phantom
from deepseek.medical.scan_findings import (
    FindingsFile,
    finding_rows,
    finding_scores,
    findings_of_labels,
    match_rows,
)
from deepseek.models import Centers

from ..models.test_volume_detector import CENTERS, make_detector, spotted

FOUND = Centers(
    np.array([[0.0, 0, 1], [50, 50, 50], [20, 0, 0], [0, 0, 0]]),
    np.array([6.0, 5, 4, 6]),
    np.array([0.9, 0.8, 0.7, 0.3]),
)


def test_rows_say_what_is_hit_and_what_is_missed():
    known = Findings([[0, 0, 0], [20, 0, 1], [90, 0, 0]], [6, -1, 8], [False, True, False])
    rows = finding_rows(FOUND, known)
    json.dumps(rows)
    assert [row["is_hit"] for row in rows["findings"]] == [True, False, None, True]
    assert [row["score"] for row in rows["known"]] == [0.9, 0.7, None]
    assert set(finding_rows(FOUND)) == {"findings"}
    froc = match_rows([rows, finding_rows(FOUND)])
    assert froc.num_scans == 1
    assert froc.num_findings == 2
    assert finding_scores([rows])["sensitivity_at_1"] == 0.5
    assert finding_scores([finding_rows(FOUND)]) == {}
    healthy = finding_rows(FOUND, Findings(np.empty((0, 3)), np.empty(0)))
    assert [row["is_hit"] for row in healthy["findings"]] == [False] * 4
    assert finding_scores([healthy]) == {}


def test_parts_of_labels_are_findings():
    labels = np.zeros((1, 12, 20, 20), np.uint8)
    labels[0, 2:5, 2:5, 2:5], labels[0, 8, 10, 12] = 1, 2
    volume = Volume(labels, make_affine((2.0, 1.0, 1.0), (10, 0, -5)))
    found = findings_of_labels(volume)
    np.testing.assert_allclose(found.centers_mm, [[13, 3, 1], [22, 10, 11]])
    np.testing.assert_allclose(np.pi / 6 * found.diameters_mm**3, [54, 2])
    assert len(findings_of_labels(Volume(labels * 0, volume.affine)).diameters_mm) == 0


def write_spots(folder, count=2):
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        volume = spotted(CENTERS[: number + 1])
        voxels = {"images": volume.voxels[0], "labels": (volume.voxels[0] > 0.6).astype(np.uint8)}
        for name, written in voxels.items():
            np.savez(folder / name / f"{number}.npz", voxels=written, affine=volume.affine)
    return folder


def test_findings_of_scans_are_rows_of_a_file_in_millimetres(tmp_path):
    folder = write_spots(tmp_path / "set")
    detector = make_detector(min_score=0.5)
    rows = list(predict_scans(detector, find_scans([folder]), tmp_path / "out"))
    litres = sum(row["litres"] for row in rows)
    assert finding_scores(rows) == {
        "cpm": 1.0, "sensitivity_at_1": 1.0, "false_per_litre_at_1": len(rows) / litres,
    }  # fmt: skip
    with (tmp_path / "out" / "findings.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["scan"] for line in lines] == ["0", "1", "1"]
    places = np.array([[float(line[axis]) for axis in "xyz"] for line in lines])
    np.testing.assert_allclose(places, CENTERS[[0, 0, 1]], atol=1.5)
    assert float(lines[0]["diameter_mm"]) == 6
    with pytest.raises(ValueError, match=r"findings\.csv is there already"):
        list(predict_scans(detector, find_scans([folder]), tmp_path / "out"))


def test_a_name_that_is_no_utf8_is_written_with_a_backslash(tmp_path):
    table = FindingsFile(tmp_path / "findings.csv")
    table.add("a\udcff", finding_rows(FOUND)["findings"][:1])
    assert (tmp_path / "findings.csv").read_text().splitlines()[1].startswith(r"a\udcff,0.00,")


@pytest.mark.parametrize("layout", ["dicom", "luna16"])
def test_findings_that_are_known_come_with_the_scans(tmp_path, layout):
    pytest.importorskip("pydicom")
    for number in range(2):
        phantom = make_phantom((24, 48, 48), (12, 7.5, 7.5), num_nodules=number, seed=1)
        write_phantom(phantom, tmp_path, f"scan-{number}", layout)
    scans = find_scans([tmp_path])
    assert [scan.name for scan in scans] == ["scan-0", "scan-1"]
    assert [len(scan.findings.diameters_mm) for scan in scans] == [0, 1]
    annotated = read_findings(tmp_path / "annotations.csv")["scan-1"]
    np.testing.assert_array_equal(scans[1].findings.centers_mm, annotated.centers_mm)


def test_a_scan_that_cannot_be_read_leaves_the_others(tmp_path):
    folder = write_spots(tmp_path / "set", 3)
    labels = folder / "labels" / "0.npz"
    np.savez(labels, voxels=np.zeros((3, 4, 5), np.uint8))
    (folder / "images" / "1.npz").write_bytes(b"no archive")
    rows = list(predict_scans(make_detector(min_score=0.5), find_scans([folder]), tmp_path / "out"))
    assert "has 3 x 4 x 5 voxels, its volume 17 x 30 x 27" in rows[0]["error"]
    assert "is no NumPy file" in rows[1]["error"]
    assert len(rows[2]["findings"]) == 2
    text = (tmp_path / "out" / "findings.csv").read_text()
    assert text.count("\n") == 3
