"""Cubes of scans show their findings, in place, and candidates that are none; once."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from deepseek.datasets import VolumeDataset
from deepseek.datasets.volume import Volume, make_affine
from deepseek.errors import ConfigError, DataError
from deepseek.medical import Findings, NoduleDataset
from deepseek.medical.dicom_folders import series_uid
from deepseek.medical.nodule_crops import cube_at
from deepseek.medical.nodule_cubes import NoduleCubes
from deepseek.medical.nodule_cutting import FILE_NAME
from deepseek.medical.phantom_files import write_phantom
from deepseek.medical.phantoms import Phantom, make_phantom
from deepseek.medical.scans import ANNOTATIONS, Scan, patients_of

SPACING = (2.0, 1.5, 1.5)


def chest(centers, sizes, shape=(30, 40, 40)):
    """Air with balls of 0 HU at some places in millimetres."""
    volume = Volume(np.zeros((1, *shape)), make_affine(SPACING, (-30, 10, -100)))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    points, labels = volume.to_mm(grid), np.zeros(shape, np.uint8)
    for center, size in zip(centers, sizes, strict=True):
        labels |= (np.linalg.norm(points - center, axis=1) < size / 2).reshape(shape)
    voxels = np.where(labels, 0, -900).astype(np.int16)
    findings = Findings(np.array(centers), np.array(sizes, float))
    return Phantom(Volume(voxels[None], volume.affine), labels, findings, ())


def write_candidates(folder, rows):
    with (folder / "candidates_v2.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["seriesuid", "coordX", "coordY", "coordZ", "class"])
        lines.writerows(rows)


@pytest.fixture
def luna16(tmp_path):
    """Six scans with a finding each, two candidates that are none."""
    for number in range(6):
        phantom = chest([(-5.0 + number, 30.0, -80.0)], [9.0])
        write_phantom(phantom, tmp_path, f"scan_{number}", "luna16")
    write_candidates(tmp_path, [
        ("scan_0", -5.0, 30.0, -80.0, 1), ("scan_0", -3, 31, -80, 0), ("scan_0", 20, 60, -60, 0),
        ("scan_1", 20, 60, -60, 0),
    ])  # fmt: skip
    return tmp_path


def test_a_cube_shows_its_finding_in_the_middle(luna16):
    cubes = NoduleCubes.from_scans(luna16, cube_voxels=20, cache="off", window_hu=(-1000, 0))
    assert cubes.names == tuple(f"scan-{number}_0" for number in range(6))
    assert cubes.voxels.shape == (6, 20, 20, 20)
    np.testing.assert_allclose(cubes.diameters_mm, 9, rtol=0.05)
    for voxels, mask in zip(cubes.voxels, cubes.masks, strict=True):
        np.testing.assert_allclose(np.argwhere(mask).mean(0), 9.5, atol=0.6)
        assert voxels[mask == 1].mean() > 0.7
        assert voxels[mask == 0].mean() < 0.2


def test_candidates_near_a_finding_are_no_negatives(luna16):
    cubes = NoduleCubes.from_scans(luna16, cube_voxels=16, cache="off")
    assert cubes.negative_names == ("scan-0_no", "scan-1_no")
    shade = round((-900 + 1200) / 1600 * 255)
    assert np.abs(cubes.negatives.astype(int) - shade).max() <= 1


def test_without_candidates_negatives_are_places_of_the_lungs(tmp_path):
    for number in range(2):
        phantom = make_phantom((40, 60, 60), (6.0, 5.0, 5.0), num_nodules=1, seed=number)
        write_phantom(phantom, tmp_path, f"scan_{number}", "luna16")
    cubes = NoduleCubes.from_scans(tmp_path, cube_voxels=24, negatives_per_scan=3, cache="off")
    assert cubes.negative_names == ("scan-0_no",) * 3 + ("scan-1_no",) * 3
    hounsfield = cubes.negatives.astype(float) / 255 * 1600 - 1200
    assert (np.abs(hounsfield + 860) < 100).any((1, 2, 3)).all()  # lung, at its rim too
    again = NoduleCubes.from_scans(tmp_path, cube_voxels=24, negatives_per_scan=3, cache="off")
    np.testing.assert_array_equal(cubes.negatives, again.negatives)
    none = NoduleCubes.from_scans(tmp_path, cube_voxels=24, negatives_per_scan=0, cache="off")
    assert not len(none.negatives)


def test_scans_without_findings_give_negatives_and_those_without_lungs_are_counted(
    tmp_path, capsys
):
    for number in range(2):
        phantom = make_phantom((40, 60, 60), (6.0, 5.0, 5.0), num_nodules=1 - number)
        write_phantom(phantom, tmp_path, f"scan_{number}", "luna16")
    write_phantom(chest([(-5.0, 30.0, -80.0)], [9.0]), tmp_path, "air", "luna16")
    cubes = NoduleCubes.from_scans(tmp_path, cube_voxels=24, negatives_per_scan=1, cache="off")
    assert cubes.names == ("air_0", "scan-0_0")
    assert cubes.negative_names == ("scan-0_no", "scan-1_no")
    assert "1 scans give fewer negative cubes than 1: no lungs" in capsys.readouterr().err


def test_folds_keep_the_cubes_of_a_scan_together(luna16):
    data = NoduleDataset(
        NoduleCubes.from_scans(luna16, cube_voxels=16, cache="off"), "patch_12x12x12+flip",
        negative_share=1.0,
    )  # fmt: skip
    parts = [data.split_fold(fold, 3) for fold in range(3)]
    assert sum(len(val) for _, val in parts) == 6 * 2 + 2
    for train, val in parts:
        names = {val.describe(at).partition("_")[0] for at in range(len(val))}
        assert names.isdisjoint(train.describe(at).partition("_")[0] for at in range(len(train)))
        batch, _ = val.get_batch(range(len(val)), 0)
        assert (batch["targets"][:, 0, 3] < 0).sum() == len(val) - len(val.rows)
        assert batch["inputs"].shape[1:] == (1, 12, 12, 12)
    train = parts[0][0]
    batch, _ = train.get_batch(range(len(train)), 3)
    assert (batch["targets"] == -1).all()


def test_cubes_are_cut_once_and_anew_where_a_file_changed(luna16, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "kept"))
    first = NoduleCubes.from_scans(luna16, cube_voxels=16)
    (kept,) = (tmp_path / "kept/nodules").glob(f"*/{FILE_NAME}")
    raw = luna16 / "subset0/scan_0.raw"
    content = raw.read_bytes()
    stamp = kept.stat().st_mtime_ns
    again = NoduleCubes.from_scans(luna16, cube_voxels=16)
    np.testing.assert_array_equal(first.voxels, again.voxels)
    assert first.names == again.names
    assert kept.stat().st_mtime_ns == stamp
    raw.write_bytes(content[:-2] + b"\0\0\0\0"[:2])
    NoduleCubes.from_scans(luna16, cube_voxels=16)
    assert len(list((tmp_path / "kept/nodules").glob(f"*/{FILE_NAME}"))) == 2


def test_a_cache_that_cannot_be_written_is_memory(luna16, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cubes are kept in memory: .* cannot be written"):
        cubes = NoduleCubes.from_scans(luna16, cube_voxels=16, cache=tmp_path / "file")
    assert len(cubes) == 6


def test_a_finding_that_another_reaches_into_is_left_out(tmp_path, capsys):
    near = chest([(-5, 30, -80), (5, 30, -80), (10, 60, -55)], [8, 8, 8])
    write_phantom(near, tmp_path, "near", "nifti")
    cubes = NoduleCubes.from_scans(tmp_path, cube_voxels=16, cache="off")
    assert cubes.names == ("near_2",)
    assert "2 findings are left out" in capsys.readouterr().err
    with pytest.raises(DataError, match="no cube with one finding alone in 1 scans"):
        NoduleCubes.from_scans(tmp_path, cube_voxels=60, cache="off")


def test_labels_are_the_mask_where_there_are_any(tmp_path):
    phantom = chest([(-5, 30, -80)], [9])
    half = replace(phantom, labels=phantom.labels * (np.arange(30) < 10)[:, None, None])
    write_phantom(half, tmp_path, "half", "metaimage")
    (mask,) = NoduleCubes.from_scans(tmp_path, cube_voxels=20, cache="off").masks
    assert 0 < mask.sum() < 0.8 * 4 / 3 * np.pi * 4.5**3
    (tmp_path / "annotations.csv").unlink()
    assert len(NoduleCubes.from_scans(tmp_path, cube_voxels=20, cache="off")) == 1


def test_a_cube_stays_inside_its_scan_and_air_is_beside_a_small_one():
    volume = chest([(-30, 10, -100)], [6]).volume
    cube = cube_at(volume, np.array([-30.0, 10.0, -100.0]), 20)
    np.testing.assert_allclose(cube.to_mm(np.zeros((1, 3)))[0], [-30, 10, -100], atol=0.6)
    assert cube.voxels.min() >= -901
    whole = cube_at(volume, np.array([0.0, 40.0, -70.0]), 70)
    assert whole.voxels.shape == (1, 70, 70, 70)
    assert whole.voxels.min() == -1024
    inside = whole.voxels[0] > -1024
    assert np.ptp(np.argwhere(inside), axis=0).tolist() == [59, 59, 59]


def test_subsets_with_labels_are_volumes_to_learn_from(luna16):
    data = VolumeDataset(luna16, "patch_8x8x8", cache="off")
    assert data.num_volumes == 6
    assert len(data.class_names) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"cube_voxels": 4}, "cube_voxels=4 is below 8"), ({"window_hu": (0, 0)}, "no interval")],
)
def test_wrong_settings_are_refused(tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words):
        NoduleCubes.from_scans(tmp_path, **settings)


def test_scans_of_which_nothing_is_known_are_refused(tmp_path):
    np.save(tmp_path / "scan.npy", np.zeros((4, 4, 4), np.int16))
    with pytest.raises(DataError, match=r"neither annotations.csv nor labels"):
        NoduleCubes.from_scans(tmp_path, cache="off")


def write_patients(folder, patients):
    """Write a series with a finding for each, in folders `series_0`, `series_1`, ..."""
    pydicom = pytest.importorskip("pydicom")
    for number, patient in enumerate(patients):
        phantom = chest([(-5.0 + number, 30.0, -80.0)], [9.0])
        phantom.volume.voxels[..., -5:, :] = 40
        series = write_phantom(phantom, folder, f"series_{number}")
        for file in series.iterdir():
            header = pydicom.dcmread(file)
            header.PatientID = patient
            header.save_as(file)
    return folder


def test_series_of_a_patient_are_in_one_fold_and_the_patient_is_not_told(tmp_path):
    folder = write_patients(tmp_path / "a", ["Doe7", "Roe8", "Doe7", ""])
    cubes = NoduleCubes.from_scans(folder, cube_voxels=16, cache=tmp_path / "cache")
    assert cubes.names == ("series-0_0", "series-1_0", "series-0_series-2_0", "series-3_0")
    folds = cubes.folds(3)
    assert folds[0] == folds[2]
    assert len(set(folds)) == 3
    kept = b"".join(file.read_bytes() for file in (tmp_path / "cache").rglob("*.npz"))
    assert b"Doe7" not in kept
    assert "Doe7".encode("utf-32-le") not in kept


def test_without_a_number_patients_are_the_folders(tmp_path):
    folder = write_patients(tmp_path, ["same"] * 3)
    patients = ("p1/old", "p1/new", "p2/new")
    for number, place in enumerate(patients):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (folder / "images" / f"series_{number}").rename(tmp_path / place)
    scans = [Scan(tmp_path / place, title=place.replace("/", "_")) for place in patients]
    assert patients_of(scans, tmp_path) == ["p1_old", "p1_old", "p2_new"]


def test_candidates_are_those_of_a_series(tmp_path):
    folder = write_patients(tmp_path, ["Doe7", "Roe8"])
    series = [folder / "images" / f"series_{number}" for number in range(2)]
    write_candidates(folder, [(series_uid(each), 20, 60, -60, 0) for each in series])
    cubes = NoduleCubes.from_scans(folder, cube_voxels=16, cache="off")
    assert cubes.negative_names == ("series-0_no", "series-1_no")
    write_candidates(folder, [("1.2.3", 20, 60, -60, 0)])
    with pytest.warns(UserWarning, match="candidates of 1 scans, and none of them is one of the 2"):
        cubes = NoduleCubes.from_scans(folder, cube_voxels=16, cache="off")
    assert len(cubes.negatives) == 0


def test_findings_outside_their_scan_are_refused(luna16):
    listed, excluded = (luna16 / name for name in ANNOTATIONS)
    at_the_rim = "scan_1,-30.7,9.3,-100.9,3\n"
    in_ras = "scan_0,5,-30,-80,9\n"
    known = listed.read_text() + at_the_rim
    listed.write_text(known + in_ras)
    with pytest.raises(DataError, match=r"1 of 2 findings of .*scan_0\.mhd lie outside") as refused:
        NoduleCubes.from_scans(luna16, cube_voxels=16, cache="off")
    assert "towards left, back and head (LPS)" in str(refused.value)
    listed.write_text(known)
    excluded.write_text(known.splitlines()[0] + "\n" + in_ras)
    assert "scan-0_0" in NoduleCubes.from_scans(luna16, cube_voxels=16, cache="off").names
