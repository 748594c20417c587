import numpy as np
import pytest

from deepseek.datasets import read_volume
from deepseek.errors import DataError
from deepseek.medical.chest import body_mask, lung_mask

pytest.importorskip("scipy")
SPACING_MM = (2.5, 1.5, 1.5)


def chest():
    """A body on a table, two lungs with a nodule at the wall of one, HU (D, H, W)."""
    hounsfield = np.full((10, 90, 120), -1000, np.int16)
    hounsfield[:, 10:80, 10:110] = 40
    hounsfield[:, 84:86, 5:115] = 300  # the table
    hounsfield[:, 20:70, 20:55] = hounsfield[:, 20:70, 65:100] = -850
    hounsfield[4:6, 40:43, 20:22] = 50  # a nodule of 4.5 mm
    return hounsfield


def test_the_table_is_no_body_and_nodules_at_the_wall_are_lung():
    body, lungs = body_mask(chest()), lung_mask(chest(), SPACING_MM)
    assert body[:, 10:80, 11:109].all()
    assert not body[:, 84:86].any()
    expected = np.zeros_like(lungs)
    expected[:, 20:70, 20:55] = expected[:, 20:70, 65:100] = True
    assert (lungs != expected).mean() < 0.01
    assert lungs[4:6, 40:43, 21].all()


def test_lungs_of_real_slabs_are_as_large_as_lungs(real_data):
    pytest.importorskip("pydicom")
    volume = read_volume(real_data / "lidc_ct_slabs" / "LIDC-IDRI-0002")
    hounsfield = volume.voxels[0, ::6]
    lungs = lung_mask(hounsfield, (7.5, *volume.spacing_mm[1:]))
    area_cm2 = lungs.sum((1, 2)) * np.prod(volume.spacing_mm[1:]) / 100
    assert ((area_cm2 > 100) & (area_cm2 < 400)).all()
    assert -900 < np.median(hounsfield[lungs]) < -700


def test_what_is_no_chest_is_refused():
    with pytest.raises(DataError, match="no voxel is above -320 HU"):
        body_mask(np.full((2, 3, 4), -1000))
    with pytest.raises(DataError, match=r"has the shape \(3, 4\), not \(D, H, W\)"):
        body_mask(np.zeros((3, 4)))
    with pytest.raises(DataError, match="no voxel is above"):
        lung_mask(np.full((2, 3, 4), -1000), SPACING_MM)
