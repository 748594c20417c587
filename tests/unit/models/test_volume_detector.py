"""What is found lies where it is in the patient, whatever was done to the scan for the model."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepseek.datasets import DataSpec
from deepseek.datasets.spec import FieldSpec
from deepseek.datasets.volume import Volume, make_affine
from deepseek.errors import ConfigError, DataError
from deepseek.medical.scan_findings import finding_rows
from deepseek.models import CenterDetector3D, ModelEngine, VolumeDetector, WindowOptions
from deepseek.models.volume_detector import detector_spec
from deepseek.trainer.precision import cast_weights

from .test_volume_segmenter import make_engine


class Blobs(nn.Module):
    """Centres where the means over places of two voxels are bright, 6 mm wide."""

    def forward(self, x):
        means = F.avg_pool3d(x, 2)
        return torch.cat([12 * means - 6, torch.full_like(means, np.log(6.0))], 1)


def make_detector(transform="window_0_1", window=(8, 8, 8), module=None, min_score=0.1, **options):
    fields = {"inputs": FieldSpec((1, *window), "float32"), "targets": FieldSpec((1, 4), "float32")}
    spec = DataSpec("detection", fields, ("nodule",), (1,), transform)
    engine = ModelEngine.wrap(module or Blobs(), spec)
    return VolumeDetector(engine, WindowOptions(**options), min_score=min_score)


def test_a_detector_reports_from_the_score_of_its_validation_on():
    assert make_detector(min_score=None).min_score == 0.1
    engine = make_detector()._engine
    engine.spec = replace(engine.spec, min_score=0.4)
    assert VolumeDetector(engine).min_score == 0.4
    assert VolumeDetector(engine, min_score=0.05).min_score == 0.05


@pytest.mark.parametrize("num_scores", [0, 2])
def test_a_detector_keeps_its_head_when_it_starts_from_weights(num_scores, tmp_path):
    sizes = {"features": (2, 4, 4), "num_scores": num_scores}
    trained = ModelEngine("center_detector3d", num_classes=1, **sizes)
    trained.save(tmp_path / "model.bin")
    engine = ModelEngine("center_detector3d", weights=tmp_path / "model.bin", **sizes)
    assert engine.num_classes == 1
    engine.bind(make_detector()._engine.spec)
    assert torch.equal(engine.module.head.weight, trained.module.head.weight)
    assert torch.equal(engine.module.head.bias, trained.module.head.bias)


class Telling(nn.Module):
    """Blobs, and the mean brightness as a score."""

    def __init__(self, low=1.0, high=5.0):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        found = Blobs()(x)
        told = self.low + (self.high - self.low) * F.avg_pool3d(x, 2)
        return torch.cat([found[:, :1], told, found[:, 1:]], 1)


def telling(**range_):
    detector = make_detector(module=Telling(**range_), min_score=0.5, flips=(0, 2))
    fields = {**detector.spec.fields, "score.malignancy": FieldSpec((), "float32")}
    detector.spec = replace(detector.spec, fields=fields)
    return detector


@pytest.mark.parametrize(("range_", "told"), [((6, 20), 5.0), ((-9, -1), 1.0)])
def test_scores_that_are_told_stay_within_1_to_5(range_, told):
    low, high = range_
    found = telling(low=low, high=high)(spotted([(15, 20, 18)]))
    assert found.told["malignancy"].tolist() == [told]


def test_what_else_a_model_tells_is_read_where_a_centre_is():
    volume = spotted([(15, 20, 18)])
    detector = telling()
    found = detector(volume)
    assert detector.told_names == ("malignancy",)
    assert len(found.scores) == 1
    assert 3 < found.told["malignancy"][0] < 5
    (row,) = finding_rows(found)["findings"]
    assert row["malignancy"] == found.told["malignancy"][0]


def spotted(centers, shape=(17, 30, 27), spacing=(2.0, 1.0, 1.0), orientation="SPL"):
    """A scan with a smooth spot at each place in mm, and its size in mm."""
    volume = Volume(np.zeros((1, *shape), np.float32), make_affine(spacing, (5, 6, 7)))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    away = volume.to_mm(grid)[:, None] - np.array(centers)
    heights = np.linspace(1, 0.8, len(centers))
    spots = (heights * np.exp(-(away**2).sum(-1) / 8)).max(1)
    volume.voxels[0] = spots.reshape(shape)
    return volume.reoriented(orientation)


CENTERS = np.array([[15.0, 20, 17], [25, 12, 31]])


@pytest.mark.parametrize("orientation", ["SPL", "LPS", "RAI"])
@pytest.mark.parametrize("transform", ["window_0_1", "spacing_1x1x1+window_0_1"])
def test_what_is_found_lies_where_it_is_in_the_patient(orientation, transform):
    volume = spotted(CENTERS, orientation=orientation)
    found = make_detector(transform, min_score=0.5)(volume)
    # a place of the map is two voxels wide
    np.testing.assert_allclose(found.points_mm, CENTERS, atol=1.5)
    np.testing.assert_allclose(found.diameters_mm, 6, rtol=1e-5)
    assert (np.diff(found.scores) <= 0).all()


def test_windows_do_not_change_what_one_window_finds():
    torch.manual_seed(0)
    volume = spotted(CENTERS, (16, 24, 24))
    whole = make_detector(window=(16, 24, 24), min_score=0.3)(volume)
    parts = make_detector(overlap=0.5, batch_size=3, min_score=0.3)(volume)
    np.testing.assert_allclose(parts.points_mm, whole.points_mm, atol=1e-4)
    np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-5)


def test_the_surest_hundred_are_those_of_the_region_and_more_are_said():
    voxels = np.zeros((1, 48, 48, 48), np.float32)
    for d, h, w in itertools.product(range(4, 48, 8), repeat=3):  # 108 of 216 below 26
        voxels[0, d : d + 2, h : h + 2, w : w + 2] = 1.0 if d < 26 else 0.8
    volume = Volume(voxels, make_affine((1, 1, 1)))

    def weaker(scan):
        mask = np.zeros(scan.voxels.shape, np.uint8)
        mask[:, 26:] = 1
        return Volume(mask, scan.affine)

    for region, score in ((None, 1.0), (weaker, 0.8)):
        detector = make_detector(window=(48, 48, 48), region=region)
        with pytest.warns(UserWarning, match=r"more than 100 centres score 0\.1 or more"):
            found = detector(volume)
        assert len(found.scores) == 100
        expected = 1 / (1 + np.exp(6 - 12 * score))
        np.testing.assert_allclose(found.scores, expected, rtol=1e-4)


def test_flips_are_means_over_mirrored_windows():
    torch.manual_seed(0)
    module = CenterDetector3D(num_classes=1, features=(4, 4, 4))
    detector = make_detector(module=module, flips=(1, 2), min_score=0.0)
    window = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        found = detector._compute(detector._fold(window))
        ways = [(), (3,), (4,), (3, 4)]
        expected = torch.stack([module.eval()(window.flip(way)).flip(way) for way in ways]).mean(0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_beside_the_region_nothing_is_looked_for():
    volume = spotted(CENTERS)
    seen = []

    def near_the_first(scan):
        voxels = np.zeros(scan.voxels.shape, np.uint8)
        d, h, w = np.rint(scan.to_indices(CENTERS[:1])[0]).astype(int)
        voxels[0, d, h, w] = 1
        return Volume(voxels, scan.affine)

    detector = make_detector(region=near_the_first, min_score=0.5)
    found = detector(volume, on_windows=lambda done, total: seen.append(total))
    np.testing.assert_allclose(found.points_mm, CENTERS[:1], atol=1.5)
    assert seen[-1] == 1
    everything = make_detector(
        region=lambda scan: Volume(np.ones(scan.voxels.shape, np.uint8), scan.affine), min_score=0.5
    )
    assert len(everything(volume).scores) == 2


def test_an_empty_scan_has_nothing():
    found = make_detector()(Volume(np.zeros((1, 5, 6, 7), np.int16), np.eye(4)))
    assert found.points_mm.shape == (0, 3)


def test_other_models_scans_and_arguments_are_refused():
    with pytest.raises(ConfigError, match="was not trained to find centres"):
        detector_spec(make_engine())
    with pytest.raises(ConfigError, match=r"min_score=2 is not in 0\.\.1"):
        make_detector(min_score=2)
    with pytest.raises(ConfigError, match=r"flips=\[3\]"):
        make_detector(flips=(3,))
    with pytest.raises(ConfigError, match=r"\(1, 7, 8, 8\)|no whole number"):
        make_detector(window=(7, 8, 8))
    with pytest.raises(DataError, match="the scan has 2 channels"):
        make_detector()(Volume(np.zeros((2, 4, 8, 8)), np.eye(4)), where="the scan")


def test_weights_in_bf16_compute_without_autocast(tmp_path):
    torch.manual_seed(0)
    module = CenterDetector3D(num_classes=1, features=(4, 4, 4))
    with torch.no_grad():  # a new head finds next to nothing
        module.head.bias += 3
    engine = make_detector(module=module)._engine
    expected = VolumeDetector(engine, min_score=0.1)(spotted(CENTERS))
    cast_weights(engine.module, shards=False)
    engine.save(tmp_path / "model.bin")
    loaded = ModelEngine.load(tmp_path / "model.bin")
    assert loaded.module.head.weight.dtype == torch.bfloat16
    found = VolumeDetector(loaded, min_score=0.1)(spotted(CENTERS))
    assert len(found.scores) > 0
    assert found.scores[0] == pytest.approx(expected.scores[0], abs=0.05)


def test_outputs_that_are_no_numbers_are_not_nothing():
    module = CenterDetector3D(num_classes=1, features=(4, 4, 4))
    with torch.no_grad():
        module.head.bias[0] = torch.nan
    with pytest.raises(DataError, match="not numbers"):
        make_detector(module=module)(spotted(CENTERS))
