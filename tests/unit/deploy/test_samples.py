"""What a trained model is calibrated and compared on."""

import pytest
import torch
from tests.unit.datasets.volumes import write_pairs

from deepseek.datasets import VolumeDataset
from deepseek.deploy import quantize
from deepseek.deploy.formats import export
from deepseek.deploy.samples import Samples, draw_inputs
from deepseek.models import ModelEngine, UNet3D

PATCH = (8, 8, 8)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = write_pairs(tmp_path_factory.mktemp("volumes") / "pairs", count=4, shape=(17, 9, 10))
    return VolumeDataset(folder, transform="zscore+patch_8x8x8+flip+noise_1", cache="off")


@pytest.fixture(scope="module")
def segmenter(volumes):
    torch.manual_seed(0)
    engine = ModelEngine.wrap(UNet3D(features=(4, 6), blocks=1, channels=1))
    engine.bind(volumes.spec)
    return engine.eval()


def test_volumes_are_samples_as_patches_without_augmentation(volumes):
    for data in (volumes, volumes.evaluation_view(), volumes.split(0.25)[0]):
        patches = data.patches()
        # 17 or 18 by 9 to 11 by 9 to 11 voxels: three by two by two patches
        assert len(patches) == 12 * data.num_volumes
        assert patches.spec.fields == volumes.spec.fields
        assert patches.transform == "zscore+patch_8x8x8"
        first = next(Samples(data, 5).batches())
        assert first["inputs"].shape == (5, 1, *PATCH)
        assert torch.equal(first["inputs"], next(Samples(data, 5).batches())["inputs"])


def test_a_segmenter_of_patches_is_compared_on_patches_of_its_volumes(volumes, segmenter):
    assert draw_inputs(segmenter, volumes, 256).shape == (48, 1, *PATCH)


@pytest.mark.long
def test_a_segmenter_of_patches_is_exported_in_int8_with_its_volumes(volumes, segmenter, tmp_path):
    pytest.importorskip("onnxruntime")
    done = export(segmenter, tmp_path / "m.onnx", precision="int8", data=volumes, threads=1)
    assert done.is_real
    assert done.num_bytes > 0


def test_a_segmenter_of_patches_is_quantised_with_its_volumes(volumes, segmenter):
    done = quantize(segmenter, "int8_static", volumes.evaluation_view(), batch_size=8)
    assert (done.metric, done.num_samples) == ("dice", 24)
