"""What cannot be predicted is a row with the reason; the other scans and the page are done."""

import re

import numpy as np
import pytest

from deepseek.datasets.volume import make_affine
from deepseek.errors import ConfigError
from deepseek.medical import ScanReport, find_scans, predict_scans
from deepseek.medical.regions import find_region
from deepseek.models import VolumeDetector, VolumeSegmenter, WindowOptions

from ..models.test_volume_detector import make_detector
from ..models.test_volume_segmenter import make_engine
from .broken_inputs import BROKEN_INPUTS, FILES, Broken

pytest.importorskip("pydicom")
pytest.importorskip("nibabel")


def channels(folder):
    path = folder / "two.npy"
    np.save(path, np.zeros((2, 4, 5, 6), np.float32))
    return path


BROKEN = {
    **FILES,
    "other channels": Broken(channels, "has 2 channels, the model takes 1"),
    **{
        name: BROKEN_INPUTS[f"series: {name}"]
        for name in ("one slice missing", "two series", "intercept forgotten")
    },
}


@pytest.fixture(params=["masks", "findings"])
def predictor(request) -> VolumeSegmenter | VolumeDetector:
    return make_detector() if request.param == "findings" else VolumeSegmenter(make_engine())


def test_every_broken_scan_is_a_row_and_the_others_are_done(predictor, tmp_path):
    good = tmp_path / "good.npy"
    np.save(good, np.zeros((6, 9, 9), np.float32))
    paths = []
    for number, broken in enumerate(BROKEN.values()):
        (tmp_path / str(number)).mkdir()
        path = broken.make(tmp_path / str(number))
        paths.append(path.rename(path.with_name(f"{number}-{path.name}")))
    report = ScanReport(predictor.spec, {})
    scans = find_scans([*paths, good])
    rows = list(predict_scans(predictor, scans, tmp_path / "out", on_result=report.add))
    assert len(rows) == len(BROKEN) + 1
    for row, (name, broken) in zip(rows, BROKEN.items(), strict=False):
        assert "error" in row, (name, row)
        assert re.search(broken.message, row["error"]), (name, row["error"])
    assert "error" not in rows[-1]
    page = report.write(tmp_path / "page.html", rows).read_text()
    assert page.count('<tr><th scope="row">') >= len(BROKEN)


@pytest.mark.parametrize("name", ["shape", "place", "class"])
def test_labels_of_another_scan_are_a_row(predictor, tmp_path, name):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    labels = np.zeros((6, 9, 9), np.uint8)
    affine = make_affine((1, 1, 1))
    for number in range(2):
        np.savez(tmp_path / "images" / f"{number}.npz", voxels=labels, affine=affine)
        np.savez(tmp_path / "labels" / f"{number}.npz", voxels=labels, affine=affine)
    wrong = {
        "shape": (labels[:5], affine),
        "place": (labels, make_affine((1, 1, 1), (50, 0, 0))),
        "class": (np.full((6, 9, 9), -3, np.int16), affine),
    }[name]
    np.savez(tmp_path / "labels" / "0.npz", voxels=wrong[0], affine=wrong[1])
    rows = list(predict_scans(predictor, find_scans([tmp_path])))
    assert ["error" in row for row in rows] == [True, False]


def test_a_scan_without_lungs_is_a_row_where_lungs_are_asked_for(tmp_path):
    np.save(tmp_path / "a.npy", np.full((12, 24, 24), 40, np.int16))
    region = find_region("lungs")
    for predictor in (
        make_detector(region=region),
        VolumeSegmenter(make_engine(), WindowOptions(region=region)),
    ):
        scans = find_scans([tmp_path / "a.npy"])
        (row,) = predict_scans(predictor, scans)
        assert "no lungs are found" in row["error"]


def test_known_findings_that_are_no_numbers_end_it_before_the_first_scan(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((6, 9, 9), np.float32))
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
    (tmp_path / "annotations.csv").write_text(f"{header}a,1,2,x,4\n")
    with pytest.raises(ValueError, match="line 2: coordinates or diameter_mm are not numbers"):
        find_scans([tmp_path])


def test_models_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match="was not trained to find a class"):
        VolumeSegmenter(make_detector()._engine)
    with pytest.raises(ConfigError, match="was not trained to find centres"):
        VolumeDetector(make_engine())


def test_an_empty_mask_has_no_score_and_a_picture(tmp_path):
    report = ScanReport(make_engine().spec, {})
    segmenter = VolumeSegmenter(make_engine())
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", np.zeros((6, 9, 9), np.uint8))
    (row,) = predict_scans(segmenter, find_scans([tmp_path]), on_result=report.add)
    assert row["dice"] == {"bright": None}
    page = report.write(tmp_path / "page.html", [row]).read_text()
    assert page.count('<svg class="slice"') == 3
