import json

import numpy as np
import pytest

from deepseek.datasets import read_volume
from deepseek.datasets.volume import Volume
from deepseek.errors import ConfigError, DataError
from deepseek.medical import find_scans, predict_scans
from deepseek.medical.volume_prediction import mean_scores
from deepseek.models import VolumeSegmenter

from ..datasets.volumes import AFFINE_RAS
from ..models.test_volume_segmenter import make_engine
from .slices import phantom, write_series
from .test_dicom_segmentation import study

nibabel = pytest.importorskip("nibabel")


def box(shape=(6, 10, 9)):
    voxels = np.zeros(shape, np.int16)
    voxels[1:4, 2:7, 3:8] = 1
    return voxels


def write_set(folder):
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            image = nibabel.Nifti1Image(box().T, AFFINE_RAS)
            nibabel.save(image, folder / name / f"{number}.nii.gz")
    return folder


def test_masks_lie_on_the_scan_and_are_scored(tmp_path):
    folder = write_set(tmp_path / "set")
    segmenter = VolumeSegmenter(make_engine())
    rows = list(predict_scans(segmenter, find_scans([folder]), tmp_path / "out"))
    json.dumps(rows)
    assert [row["dice"] for row in rows] == [{"bright": 1.0}] * 2
    assert [row["hausdorff95_mm"] for row in rows] == [{"bright": 0.0}] * 2
    assert mean_scores(rows) == {"dice": 1.0, "hausdorff95_mm": 0.0}
    voxel_ml = abs(np.linalg.det(AFFINE_RAS[:3, :3])) / 1000
    assert rows[0]["ml"]["bright"] == pytest.approx(75 * voxel_ml)
    mask = nibabel.load(rows[0]["mask"])
    np.testing.assert_allclose(mask.affine, AFFINE_RAS, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), box().T)
    assert mask.get_data_dtype() == np.uint8
    with pytest.raises(ConfigError, match=r"findings\.csv is there already"):
        list(predict_scans(segmenter, find_scans([folder]), tmp_path / "out"))


def test_a_dicom_series_has_a_segmentation_as_well(tmp_path):
    pytest.importorskip("highdicom")
    series = write_series(tmp_path / "series", change=study)
    segmenter = VolumeSegmenter(make_engine("window_-1024_1000"))
    (row,) = predict_scans(segmenter, find_scans([series]), tmp_path / "out")
    mask = read_volume(row["mask"])
    np.testing.assert_array_equal(mask.reoriented("SPL").voxels[0] > 0, phantom() > 0)
    assert row["segmentation"].endswith("series.dcm")
    assert "dice" not in row


def test_a_series_without_a_study_still_has_its_mask_and_findings(tmp_path):
    pytest.importorskip("highdicom")
    series = write_series(tmp_path / "series")
    segmenter = VolumeSegmenter(make_engine("window_-1024_1000"))
    with pytest.warns(UserWarning, match=r"series\.dcm is not written: the headers of .* lack"):
        (row,) = predict_scans(segmenter, find_scans([series]), tmp_path / "out")
    mask = read_volume(row["mask"])
    np.testing.assert_array_equal(mask.reoriented("SPL").voxels[0] > 0, phantom() > 0)
    assert "segmentation" not in row
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "findings.csv", "series.nii.gz",
    ]  # fmt: skip
    assert len((tmp_path / "out" / "findings.csv").read_text().splitlines()) == 1 + len(
        row["parts"]
    )


def test_what_cannot_be_read_is_a_row_or_the_end(tmp_path):
    for number, shape in enumerate([(3, 4, 5), (2, 3, 4, 5, 6)]):
        np.save(tmp_path / f"{number}.npy", np.zeros(shape, np.float32))
    segmenter = VolumeSegmenter(make_engine())
    rows = list(predict_scans(segmenter, find_scans([tmp_path])))
    assert rows[0] == {"file": str(tmp_path / "0.npy"), "scan": "0", "ml": {"bright": 0.0}}
    assert "neither (D, H, W) nor" in rows[1]["error"]
    assert rows[1]["scan"] == "1"
    with pytest.raises(DataError, match="neither"):
        list(predict_scans(segmenter, find_scans([tmp_path]), is_strict=True))


def test_scans_are_found_in_files_folders_series_and_sets(tmp_path):
    folder = write_set(tmp_path / "set")
    scans = find_scans([folder])
    assert [(scan.name, scan.labels is None) for scan in scans] == [("0", False), ("1", False)]
    assert [scan.name for scan in find_scans([folder / "images"])] == ["0", "1"]
    many = tmp_path / "patients"
    for name in ("b", "a"):
        write_series(many / name)
    assert [scan.name for scan in find_scans([many])] == ["a", "b"]
    assert find_scans([many / "a"])[0].image == many / "a"
    with pytest.raises(DataError, match="2 names of volumes are there twice, such as 0"):
        find_scans([folder / "images", folder / "labels"])


def test_several_channels_and_integers_are_written_as_they_are(tmp_path):
    from deepseek.datasets.nifti import decode_nifti, encode_nifti, write_nifti

    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 9, (2, 3, 4, 5)).astype(np.int16)
    affine = np.array([[0, 0, 2.0, 1], [0.5, 0.2, 0, 2], [0.1, -1, 0, 3], [0, 0, 0, 1]])
    write_nifti(tmp_path / "a.nii.gz", Volume(voxels, affine))
    for found in (
        read_volume(tmp_path / "a.nii.gz"),
        decode_nifti(encode_nifti(Volume(voxels, affine)), "a", 1000),
    ):
        np.testing.assert_array_equal(found.voxels, voxels)
        np.testing.assert_allclose(found.affine, affine, atol=1e-6)
