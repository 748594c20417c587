import numpy as np
import pytest

from deepseek.datasets.volume import Volume, make_affine
from deepseek.errors import ConfigError, DataError
from deepseek.medical.chest import lung_mask
from deepseek.medical.regions import find_region


def chest(shape=(30, 90, 100)):
    """A body with two lungs, in HU, at 1.5 x 1.5 x 1.5 mm."""
    _, h, w = np.meshgrid(*[np.arange(size) for size in shape], indexing="ij")
    voxels = np.full(shape, -1000, np.float32)
    voxels[((h - 45) / 35) ** 2 + ((w - 50) / 42) ** 2 < 1] = 40
    for center in (30, 70):
        voxels[((h - 45) / 22) ** 2 + ((w - center) / 14) ** 2 < 1] = -850
    return Volume(voxels[None], make_affine((1.5, 1.5, 1.5)))


@pytest.mark.parametrize("orientation", ["SPL", "LAI"])
def test_lungs_are_within_their_region_and_most_of_the_scan_is_not(orientation):
    volume = chest()
    known = lung_mask(volume.voxels[0], volume.spacing_mm)
    found = find_region("lungs")(volume.reoriented(orientation))
    assert found.orientation == orientation
    there = found.reoriented("SPL").voxels[0] > 0
    assert there[known].all()
    assert known.mean() < there.mean() < 0.6
    body = find_region("body")(volume).voxels[0] > 0
    assert body[volume.voxels[0] > -900].all()


def test_a_scan_without_lungs_is_refused_and_not_passed_over():
    solid = Volume(np.full((1, 10, 20, 20), 40, np.float32), make_affine((1, 1, 1)))
    with pytest.raises(DataError, match="no lungs are found in this scan"):
        find_region("lungs")(solid)


def test_other_regions_are_refused():
    with pytest.raises(ConfigError, match="region='liver' is not known"):
        find_region("liver")
