"""Scores learnt from cubes survive their file, and are told of what is found in a scan."""

import csv

import numpy as np
import pytest
from safetensors.numpy import save_file

from deepseek.datasets.volume import Volume, make_affine
from deepseek.errors import ConfigError, DataError
from deepseek.medical import NoduleCubes, NoduleScorer, find_scans, predict_scans
from deepseek.medical.scan_findings import parts_of_labels
from deepseek.models import VolumeSegmenter

from ..models.test_volume_detector import telling
from ..models.test_volume_segmenter import make_engine

pytest.importorskip("scipy")


def ball(radius, center=(12, 12, 12), size=25):
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"))
    return ((grid - np.array(center).reshape(3, 1, 1, 1)) ** 2).sum(0) <= radius**2


@pytest.fixture(scope="module")
def cubes():
    """Balls: the larger, the more malignant; the brighter, the more solid."""
    rng = np.random.default_rng(0)
    radii, bright = rng.uniform(2, 7, 30), rng.uniform(0.5, 0.9, 30)
    masks = np.stack([ball(radius) for radius in radii]).astype(np.uint8)
    voxels = 0.1 + (bright[:, None, None, None] - 0.1) * masks
    scores = {"malignancy": np.clip(np.rint(radii - 1.5), 1, 5), "texture": bright * 5}
    scores["malignancy"][3] = np.nan
    names = tuple(f"{number // 2}_{number}" for number in range(30))
    return NoduleCubes(voxels.astype(np.float32), masks, names, scores, window_hu=(-1000.0, 400.0))


@pytest.fixture(scope="module")
def scorer(cubes):
    return NoduleScorer.fit(cubes)


def test_the_area_under_the_curve_is_of_patients_left_out(scorer):
    area = scorer.malignancy_auc
    assert 0.95 < area.value <= 1
    assert area.low <= area.value <= area.high
    assert scorer.describe() == (
        f"malignancy, texture of 30 nodules; AUC of malignancy 4-5 against 1-2, patients left"
        f" out: {area}"
    )


def test_a_file_keeps_all_of_it(scorer, tmp_path):
    again = NoduleScorer.load(scorer.save(tmp_path / "s.safetensors"))
    assert again.describe() == scorer.describe()
    assert (again.names, again.feature_names) == (scorer.names, scorer.feature_names)
    assert again.window_hu == (-1000, 400)
    row = np.arange(len(scorer.feature_names))[None] / 7
    np.testing.assert_array_equal(again.model.predict(row), scorer.model.predict(row))


def scan_of(*radii):
    """A scan in HU with balls 30 mm apart, at 1 mm, turned, and their labels."""
    size = (40, 40, 30 * len(radii) + 20)
    labels, voxels = np.zeros(size, np.uint8), np.full(size, -860, np.int16)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    for at, radius in enumerate(radii):
        center = np.array([20, 20, 30 * at + 25]).reshape(3, 1, 1, 1)
        labels |= ((grid - center) ** 2).sum(0) <= radius**2
    voxels[labels == 1] = -20  # 0.7 of the window
    affine = make_affine((1, 1, 1), (5, -7, 9))
    return tuple(Volume(each[None], affine).reoriented("LPI") for each in (voxels, labels))


def test_the_larger_nodule_of_a_scan_is_the_more_malignant(scorer):
    volume, labels = scan_of(3, 6)
    parts = parts_of_labels(labels, ("none", "nodule"))
    assert [round(part["diameter_mm"]) for part in parts] == [12, 6]
    assert parts[0]["volume_ml"] == pytest.approx((ball(6).sum()) / 1000)
    assert (parts[0]["x"], parts[0]["y"], parts[0]["z"]) == pytest.approx((60, 13, 29))
    outlined = scorer.score(volume, parts, labels)
    by_place = scorer.score(volume, parts)
    for large, small in (outlined, by_place):
        assert 1 <= small["malignancy"] < large["malignancy"] <= 5
    assert outlined[0]["malignancy"] == pytest.approx(4.5, abs=0.6)
    assert by_place[0] == pytest.approx(outlined[0], abs=0.3)


def test_parts_and_their_scores_are_lines_of_a_file(scorer, tmp_path):
    volume, _ = scan_of(3, 6)
    voxels = np.where(volume.voxels[0] > -500, 1, 0).astype(np.int16)
    np.savez(tmp_path / "scan.npz", voxels=voxels, affine=volume.affine)
    segmenter = VolumeSegmenter(make_engine())
    (row,) = predict_scans(
        segmenter, find_scans([tmp_path / "scan.npz"]), tmp_path / "out", scorer=scorer
    )
    with (tmp_path / "out" / "findings.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["class"] for line in lines] == ["bright", "bright"]
    for line, part in zip(lines, row["parts"], strict=True):
        for name in ("x", "diameter_mm", "volume_ml", "malignancy", "texture"):
            assert float(line[name]) == pytest.approx(part[name], abs=0.01)
    assert sum(part["volume_ml"] for part in row["parts"]) == pytest.approx(row["ml"]["bright"])


def test_a_score_that_the_detector_tells_itself_is_refused(scorer, tmp_path):
    rows = predict_scans(telling(), [], tmp_path / "out", scorer=scorer)
    with pytest.raises(ConfigError, match="the detector tells malignancy itself"):
        list(rows)
    assert not (tmp_path / "out").exists()


def test_what_is_no_file_of_scores_is_refused(scorer, tmp_path):
    path = tmp_path / "s.safetensors"
    with pytest.raises(DataError, match="no file of scores"):
        NoduleScorer.load(path)
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match="no file of scores, or is damaged"):
        NoduleScorer.load(path)
    save_file({"mean": np.zeros(3)}, path, {"format": "another"})
    with pytest.raises(DataError, match="no file of scores, or is damaged"):
        NoduleScorer.load(path)
    content = scorer.save(path).read_bytes()
    path.write_bytes(content.replace(b"malignancy", b"malignancx").replace(b"], ", b"],  ")[:-9])
    with pytest.raises(DataError, match="no file of scores, or is damaged"):
        NoduleScorer.load(path)


def test_wrong_names_are_refused(cubes):
    with pytest.raises(ConfigError, match="'malignency' is unknown"):
        NoduleScorer.fit(cubes, ["malignency"])
    with pytest.raises(DataError, match="no margin"):
        NoduleScorer.fit(cubes, ["margin"])
