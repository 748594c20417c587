"""A model of nodules is evaluated on cubes like those that it learnt from."""

import numpy as np
import pytest

from deepseek.cli.build_nodules import build_nodule_evaluation
from deepseek.datasets import DataSpec
from deepseek.datasets.spec import FieldSpec
from deepseek.errors import DataError
from deepseek.medical.phantom_files import write_phantom

from ..medical.test_nodule_cutting import chest


def learnt(transform, patch=12):
    fields = {"inputs": FieldSpec((1, patch, patch, patch), "float32")}
    return DataSpec("detection", fields, ("nodule",), (1,), transform)


@pytest.fixture
def scans(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))
    write_phantom(chest([(-5.0, 30.0, -80.0)], [9.0]), tmp_path / "luna16", "scan", "luna16")
    return str(tmp_path / "luna16")


def test_scans_are_cut_with_the_window_of_the_model(scans):
    transform = "spacing_1x1x1+window_-1000_0"
    data = build_nodule_evaluation(learnt(transform), scans)
    assert data.spec.transform == transform
    assert data.cubes.voxels.shape == (1, 51, 51, 51)
    assert np.median(data.cubes.voxels) == pytest.approx(0.1, abs=0.01)  # -900 HU


def test_cubes_of_scans_are_as_large_as_the_patch(scans):
    data = build_nodule_evaluation(learnt("spacing_1x1x1+window_-1200_400", patch=56), scans)
    assert data[0]["inputs"].shape == (1, 56, 56, 56)


def test_cubes_of_another_window_are_refused(tmp_path):
    mask = np.zeros((2, 16, 16, 16), np.uint8)
    mask[:, 6:10, 6:10, 6:10] = 1
    path = str(tmp_path / "cubes.npz")
    np.savez(path, image=90 * mask, mask=mask, name=["0_1", "1_1"], window_hu=[-1000.5, 400])
    same = build_nodule_evaluation(learnt("spacing_1x1x1+window_-1000.5_400"), path)
    assert len(same) == 4
    with pytest.raises(
        DataError, match=r"window_hu -1000\.5 to 400, and the model learnt -1200 to"
    ):
        build_nodule_evaluation(learnt("spacing_1x1x1+window_-1200_400"), path)
    for other in ("spacing_1x1x1+zscore", "spacing_2x1x1+window_-1000.5_400"):
        with pytest.raises(DataError, match="cubes of nodules have 1 mm and a window") as refused:
            build_nodule_evaluation(learnt(other), path)
        assert f"the model learnt {other}" in str(refused.value)
