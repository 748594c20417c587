"""Which scans are at a path, and which findings are known of them."""

from pathlib import Path

import numpy as np
import pytest

from deepseek.datasets import VolumeDataset, read_volume
from deepseek.errors import DataError
from deepseek.medical import find_scans
from deepseek.medical.scans import Scan, patients_of

from .slices import phantom, write_series
from .test_luna16 import HEADER

pytest.importorskip("pydicom")
UID = "1.2.3.5"
"""Of the series that `write_series` writes."""


def series_of(uid):
    def change(_, header):
        header.SeriesInstanceUID = uid

    return change


def annotate(folder, *names):
    rows = "".join(f"{name},1,2,3,4\n" for name in names)
    (folder / "annotations.csv").write_text(HEADER + rows)


def test_series_lie_at_any_depth_with_names_of_their_own(tmp_path):
    for number, patient in enumerate(("p1", "p2")):
        write_series(tmp_path / patient / "study" / "ct", change=series_of(f"1.2.{number}"))
    scans = find_scans([tmp_path])
    assert [scan.name for scan in scans] == ["p1_study_ct", "p2_study_ct"]
    assert [scan.image for scan in scans] == [
        tmp_path / patient / "study" / "ct" for patient in ("p1", "p2")
    ]
    assert [scan.name for scan in find_scans([tmp_path / "p1"])] == ["ct"]


def test_files_lie_at_any_depth_where_there_is_nothing_above_and_folders_are_patients(tmp_path):
    for place in ("p1/a.npy", "p1/b.npy", "p2/a.npy", ".hidden/a.npy"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        np.save(tmp_path / place, phantom())
    scans = find_scans([tmp_path])
    assert [scan.name for scan in scans] == ["p1_a", "p1_b", "p2_a"]
    assert patients_of(scans, tmp_path) == ["p1_a", "p1_a", "p2_a"]
    np.save(tmp_path / "c.npy", phantom())
    assert [scan.name for scan in find_scans([tmp_path])] == ["c"]
    luna16 = tmp_path / "luna16" / "subset0"
    luna16.mkdir(parents=True)
    alone = [Scan(luna16 / f"{name}.mhd") for name in "ab"]
    assert patients_of(alone, tmp_path / "luna16") == ["a", "b"]


def test_files_and_series_of_a_folder_are_both_found(tmp_path):
    np.save(tmp_path / "a.npy", phantom())
    write_series(tmp_path / "b")
    (tmp_path / "notes").mkdir()
    assert [scan.name for scan in find_scans([tmp_path])] == ["a", "b"]


def test_a_series_that_is_damaged_is_found_as_well(tmp_path):
    write_series(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.dcm").write_bytes(b"damaged")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1").write_bytes((tmp_path / "a" / "000.dcm").read_bytes()[:300])
    assert [scan.name for scan in find_scans([tmp_path])] == ["a", "b", "c"]


def test_findings_are_those_of_a_folder_or_of_its_series(tmp_path):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", change=series_of("1.2.9"))
    write_series(tmp_path / "c" / "study", change=series_of("1.2.10"))
    annotate(tmp_path, UID, UID, "1.2.10")
    scans = {scan.name: len(scan.findings.diameters_mm) for scan in find_scans([tmp_path])}
    assert scans == {"a": 2, "b": 0, "study": 1}


def test_rows_of_other_scans_are_said_and_never_make_a_scan_healthy(tmp_path):
    write_series(tmp_path / "a")
    annotate(tmp_path, "a", "x", "y", "z", "zz")
    with pytest.warns(UserWarning, match="findings of 4 scans that are not beside it: x, y, z$"):
        (scan,) = find_scans([tmp_path])
    assert len(scan.findings.diameters_mm) == 1
    annotate(tmp_path, "x", "y")
    with pytest.raises(DataError, match=r"findings of 2 scans \(x, y\), and none of them"):
        find_scans([tmp_path])
    annotate(tmp_path)
    with pytest.warns(UserWarning, match="lists no findings: what is in its scans is not known"):
        (scan,) = find_scans([tmp_path])
    assert scan.findings is None


def test_series_of_one_patient_are_on_one_side_of_a_split(tmp_path):
    def of_patient(name):
        def change(_, header):
            header.PatientID, header.SeriesInstanceUID = name, f"1.2.{len(seen)}"

        return change

    seen = []
    (tmp_path / "set" / "labels").mkdir(parents=True)
    for name, patient in zip("abcdef", "121323", strict=True):
        seen.append(patient)
        write_series(tmp_path / "set" / "images" / name, change=of_patient(patient))
        np.savez(
            tmp_path / "set" / "labels" / f"{name}.npz",
            voxels=(phantom() > 500).astype(np.uint8), affine=read_volume(
                tmp_path / "set" / "images" / name
            ).affine,
        )  # fmt: skip
    data = VolumeDataset(tmp_path / "set", "window_-1000_400+patch_4x4x4", cache="off")
    assert "6 volumes of 3 patients" in repr(data)
    train, val = data.split(0.3)
    sides = [
        {seen["abcdef".index(Path(part.describe(at)).name)] for at in range(len(part))}
        for part in (train, val)
    ]
    assert [len(side) for side in sides] == [2, 1]
    assert not sides[0] & sides[1]
