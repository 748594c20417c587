import numpy as np
import pytest

from deepseek.datasets import Volume
from deepseek.datasets.resampling import resampled
from deepseek.datasets.volume import make_affine
from deepseek.errors import ConfigError, DataError

SHAPE = (1, 4, 5, 6)


def numbered(affine):
    return Volume(np.arange(120).reshape(SHAPE), affine)


def test_the_default_affine_is_a_scan_from_the_feet_up():
    volume = numbered(make_affine((2.5, 0.8, 0.7), (-10, -20, -30)))
    assert volume.orientation == "SPL"
    assert volume.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert volume.to_mm(np.array([[1, 2, 3]])).tolist() == [[-10 + 2.1, -20 + 1.6, -30 + 2.5]]


@pytest.mark.parametrize("orientation", ["SPL", "IPL", "LAS", "RPI", "PSR"])
def test_reoriented_voxels_stay_where_they_are_in_the_patient(orientation):
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(np.eye(3)[:, ::-1] + rng.normal(0, 0.1, (3, 3)))
    before = numbered(make_affine((2.5, 0.8, 0.7), (3, 4, 5), turn * np.sign(turn[2, 0])))
    after = before.reoriented(orientation)
    assert after.orientation == orientation
    indices = np.argwhere(np.ones(after.voxels.shape[1:]))
    back = before.to_indices(after.to_mm(indices))
    np.testing.assert_allclose(back, np.rint(back), atol=1e-9)
    d, h, w = np.rint(back).astype(int).T
    np.testing.assert_array_equal(after.voxels[0].ravel(), before.voxels[0, d, h, w])


def test_an_orientation_names_three_axes():
    for wrong in ("SPX", "SIL", "SP"):
        with pytest.raises(ConfigError, match="does not name three axes"):
            numbered(np.eye(4)).reoriented(wrong)


def test_resampling_keeps_a_linear_field_within_a_tenth_of_a_mm():
    affine = make_affine((2.0, 1.0, 1.5), (5, 6, 7))
    indices = np.argwhere(np.ones((20, 24, 16)))
    place = Volume(np.zeros((1, 1, 1, 1)), affine).to_mm(indices)
    field = (place @ [1.0, -2.0, 3.0]).reshape(1, 20, 24, 16)
    for spacing, off in (((1.0, 1.0, 1.0), 1e-3), ((2.0, 2.0, 3.0), 1e-3), ((2.5, 1.5, 1.5), 0.35)):
        found = resampled(Volume(field, affine), spacing)
        assert found.spacing_mm == pytest.approx(spacing)
        inner = np.argwhere(np.ones(found.voxels.shape[1:]))
        expected = (found.to_mm(inner) @ [1.0, -2.0, 3.0]).reshape(found.voxels.shape)
        middle = (slice(None), *[slice(3, -3)] * 3)
        np.testing.assert_allclose(found.voxels[middle], expected[middle], atol=off)
        extent = np.array(found.voxels.shape[1:]) * spacing
        assert np.abs(extent - [40, 24, 24]).max() <= max(spacing) / 2 + 1e-9


def test_coarser_voxels_are_means_and_labels_are_those_of_the_nearest():
    stripes = np.tile([0.0, 100.0], 20).reshape(1, 1, 1, 40)
    found = resampled(Volume(stripes, make_affine((1, 1, 1))), (1, 1, 4))
    np.testing.assert_allclose(found.voxels[..., 1:-1], 50)
    labels = np.array([0, 0, 2, 2, 2, 1]).reshape(1, 1, 1, 6)
    finer = resampled(Volume(labels, make_affine((1, 1, 1))), (1, 1, 0.5), is_labels=True)
    assert finer.voxels.ravel().tolist() == np.repeat([0, 0, 2, 2, 2, 1], 2).tolist()


def test_a_volume_that_would_become_too_large_is_refused_before_it_is_made():
    with pytest.raises(DataError, match="declares 1 x 4000 x 5000 x 6000 voxels, more than"):
        resampled(numbered(make_affine((1, 1, 1))), (0.001, 0.001, 0.001))
