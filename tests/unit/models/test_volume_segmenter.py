"""Labels lie where the scan lies, whatever was done to it for the model."""

import numpy as np
import pytest
import torch
from torch import nn

from deepseek.datasets import DataSpec
from deepseek.datasets.resampling import labels_like
from deepseek.datasets.spec import FieldSpec
from deepseek.datasets.volume import Volume, make_affine
from deepseek.datasets.volume_transforms import parse_volume_transform
from deepseek.errors import ConfigError, DataError
from deepseek.models import ModelEngine, UNet3D, VolumeSegmenter, WindowOptions
from deepseek.models.volume_predictor import prepare_volume
from deepseek.models.volume_segmenter import measure_ml, takes_volumes
from deepseek.trainer.precision import cast_weights


class Bright(nn.Module):
    """Class 1 where a prepared voxel is above a half."""

    def forward(self, x):
        return torch.cat([torch.full_like(x, 0.5), x], 1)


def make_engine(transform="window_0_1", window=(4, 8, 8)):
    fields = {"inputs": FieldSpec((1, *window), "float32"), "targets": FieldSpec(window, "int64")}
    spec = DataSpec("segmentation", fields, ("background", "bright"), (1, 1), transform)
    return ModelEngine.wrap(Bright(), spec)


def scan(shape=(7, 12, 11), spacing=(2.0, 1.0, 1.0), orientation="SPL"):
    voxels = np.zeros((1, *shape), np.float32)
    voxels[0, 2:5, 3:9, 2:7] = 1
    return Volume(voxels, make_affine(spacing, (5, 6, 7))).reoriented(orientation)


@pytest.mark.parametrize("orientation", ["SPL", "LPS", "RAI", "AIR"])
def test_labels_come_back_to_the_voxels_of_the_scan(orientation):
    volume = scan(orientation=orientation)
    found = VolumeSegmenter(make_engine())(volume)
    assert found.voxels.dtype == np.uint8
    np.testing.assert_array_equal(found.voxels, volume.voxels > 0.5)
    np.testing.assert_array_equal(found.affine, volume.affine)


@pytest.mark.parametrize("spacing", ["1x1x1", "0.7x1.4x1.2", "4x0.5x0.5"])
@pytest.mark.parametrize("orientation", ["SPL", "ARI"])
def test_resampled_labels_overlap_with_what_was_scanned(spacing, orientation):
    volume = scan((10, 24, 22), orientation=orientation)
    found = VolumeSegmenter(make_engine(f"spacing_{spacing}+window_0_1"))(volume)
    assert found.voxels.shape == volume.voxels.shape
    there, known = found.voxels > 0, volume.voxels > 0.5
    assert 2 * (there & known).sum() / (there.sum() + known.sum()) > 0.6
    middle = [np.argwhere(mask[0]).mean(0) for mask in (there, known)]
    np.testing.assert_allclose(*middle, atol=0.6)


def test_a_round_trip_of_labels_through_a_finer_grid_changes_none():
    rng = np.random.default_rng(0)
    labels = Volume(rng.integers(0, 5, (1, 6, 7, 9)).astype(np.uint16), scan().affine)
    labels = labels.reoriented("LIP")
    for text in ("orient_RAS", "spacing_0.5x0.5x0.5", "orient_ASR+spacing_0.4x0.3x0.5"):
        placed = parse_volume_transform(text).place(labels, is_labels=True)
        back = labels_like(placed, labels.voxels.shape[1:], labels.affine)
        np.testing.assert_array_equal(back.voxels, labels.voxels)
        np.testing.assert_array_equal(back.affine, labels.affine)


def test_an_oblique_scan_comes_back():
    turn = np.array([[0.9, -0.4, 0.1], [0.4, 0.9, 0.2], [-0.2, -0.1, 1.0]])
    directions = np.linalg.qr(turn)[0] * np.sign(np.diag(np.linalg.qr(turn)[1]))
    volume = Volume(scan().voxels, make_affine((2, 1, 1), (1, 2, 3), directions[:, ::-1]))
    found = VolumeSegmenter(make_engine("spacing_2x1x1+window_0_1"))(volume)
    np.testing.assert_array_equal(found.voxels, volume.voxels > 0.5)
    np.testing.assert_array_equal(found.affine, volume.affine)


def test_a_region_limits_where_is_looked():
    volume = scan((40, 12, 40))
    volume.voxels[0, 30:34, 3:9, 30:34] = 1
    told = []

    def left_half(scanned):
        mask = np.zeros(scanned.voxels.shape, np.uint8)
        mask[..., :8] = 1
        return Volume(mask, scanned.affine)

    segmenter = VolumeSegmenter(make_engine(), WindowOptions(overlap=0, region=left_half))
    found = segmenter(volume, on_windows=lambda done, total: told.append(total))
    assert found.voxels[0, 2:5, 3:9, 2:7].all()
    assert not found.voxels[0, :, :, 20:].any()
    assert told[0] == 10 * 2


def test_parts_beside_the_region_are_left_out_and_those_that_touch_it_stay_whole():
    volume = scan((20, 24, 24))
    volume.voxels[0, 2:5, 14:18, 2:7] = 1  # beside the region, within a window that is computed
    volume.voxels[0, 12:15, 3:9, 4:20] = 1  # begins in the region

    def corner(scanned):
        mask = np.zeros(scanned.voxels.shape, np.uint8)
        mask[..., :10, :8] = 1
        return Volume(mask, scanned.affine)

    options = WindowOptions(region=corner)
    found = VolumeSegmenter(make_engine(window=(24, 24, 24)), options)(volume)
    expected = volume.voxels > 0.5
    expected[0, 2:5, 14:18, 2:7] = False
    np.testing.assert_array_equal(found.voxels, expected)


def test_millilitres_are_counted_in_the_size_of_voxels():
    labels = Volume(np.ones((1, 10, 10, 10), np.uint8), make_affine((2, 1, 0.5)))
    labels.voxels[0, 0] = 0
    assert measure_ml(labels, 3) == pytest.approx([0.1, 0.9, 0])


def test_other_models_and_other_channels_are_refused():
    with pytest.raises(ConfigError, match="not trained to find a class for every voxel"):
        VolumeSegmenter(ModelEngine("resnet20", num_classes=2))
    assert not takes_volumes(None)
    two = Volume(np.zeros((2, 4, 4, 4), np.float32), np.eye(4))
    with pytest.raises(DataError, match="a scan has 2 channels, the model takes 1"):
        VolumeSegmenter(make_engine())(two, where="a scan")
    with pytest.raises(DataError, match="more than max_voxels=100"):
        prepare_volume(scan(), make_engine("spacing_1x1x1").spec, 100, "a scan")


@pytest.mark.parametrize("shape", [(7, 12, 11), (3, 5, 6)])
@pytest.mark.parametrize("has_region", [False, True])
def test_probabilities_are_handed_on_beside_the_labels_of_their_voxels(shape, has_region):
    volume = scan((7, 12, 11), orientation="LPS")
    volume = Volume(volume.voxels[(..., *map(slice, shape[::-1]))], volume.affine)

    def front(of):
        mask = np.zeros(of.voxels.shape, np.uint8)
        mask[:, :2] = 1
        return Volume(mask, of.affine)

    options = WindowOptions(region=front if has_region else None)
    segmenter, slices = VolumeSegmenter(make_engine(), options), []
    known = Volume((volume.voxels > 0.5).astype(np.uint16), volume.affine)
    found = segmenter.find_beside(volume, known, lambda *both: slices.append(both))
    np.testing.assert_array_equal(found.voxels, segmenter(volume).voxels)
    probs = np.concatenate([part for part, _ in slices], 1)
    labels = np.concatenate([part for _, part in slices])
    counted = labels != -100
    assert counted.sum() <= volume.voxels.size
    assert has_region or counted.sum() == volume.voxels.size
    assert (labels == 1).sum() == (found.voxels == 1).sum() or has_region
    np.testing.assert_array_equal(probs[1][counted] > 0.5, labels[counted] == 1)


def test_weights_in_bf16_compute_without_autocast(tmp_path):
    torch.manual_seed(0)
    engine = ModelEngine.wrap(UNet3D(features=(4, 8), blocks=1, num_classes=2), make_engine().spec)
    expected = VolumeSegmenter(engine)(scan()).voxels
    cast_weights(engine.module, shards=False)
    engine.save(tmp_path / "model.bin")
    loaded = ModelEngine.load(tmp_path / "model.bin")
    assert loaded.module.head.weight.dtype == torch.bfloat16
    found = VolumeSegmenter(loaded)(scan()).voxels
    assert 0 < expected.mean() < 1
    assert (found == expected).mean() > 0.9


def test_outputs_that_are_no_numbers_are_not_the_background():
    engine = ModelEngine.wrap(UNet3D(features=(4, 8), blocks=1, num_classes=2), make_engine().spec)
    with torch.no_grad():
        engine.module.head.bias[1] = torch.nan
    with pytest.raises(DataError, match="not numbers"):
        VolumeSegmenter(engine)(scan())
