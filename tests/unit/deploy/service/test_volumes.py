"""A model of volumes behind HTTP: a scan goes in, its mask or its millilitres come out."""

import gzip
import struct

import numpy as np
import pytest
import torch

from deepseek.datasets import DataSpec
from deepseek.datasets.nifti import decode_nifti, encode_nifti
from deepseek.datasets.spec import FieldSpec
from deepseek.datasets.volume import Volume, make_affine
from deepseek.models import ModelEngine, UNet3D, VolumeSegmenter

pytest.importorskip("nibabel")
GZIP = {"Content-Type": "application/gzip"}
WINDOW = (8, 8, 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    torch.manual_seed(0)
    fields = {"inputs": FieldSpec((1, *WINDOW), "float32"), "targets": FieldSpec(WINDOW, "int64")}
    spec = DataSpec("segmentation", fields, ("none", "a", "b"), (1, 1, 1), "spacing_1x1x1+zscore")
    ModelEngine.wrap(UNet3D(features=(4, 8), blocks=1), spec).save(folder / "m.bin")
    return {("scans", "1"): folder / "m.bin"}


def scan(shape=(9, 12, 11)):
    voxels = np.random.default_rng(0).normal(0, 100, (1, *shape)).astype(np.int16)
    return Volume(voxels, make_affine((1.5, 0.8, 0.7), (10, -20, 30))).reoriented("LPS")


def test_masks_are_those_of_the_model_on_the_voxels_of_the_scan(ask, files):
    volume = scan()
    expected = VolumeSegmenter(ModelEngine.load(files["scans", "1"]))(volume)

    async def talk(client):
        body = encode_nifti(volume)
        return [
            await client.post("/predict?mask=true", content=body, headers=GZIP),
            await client.post("/predict", content=gzip.decompress(body), headers={
                "Content-Type": "application/octet-stream"}),
            await client.get("/models"),
            await client.get("/v2/models/scans"),
        ]  # fmt: skip

    mask, summary, state, described = ask(talk, files=files)
    assert mask.headers["content-type"] == "application/gzip"
    found = decode_nifti(mask.content, "the answer", 10_000)
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_allclose(found.affine, volume.affine, atol=1e-5)
    assert len(np.unique(found.voxels)) > 1
    voxel_ml = 1.5 * 0.8 * 0.7 / 1000
    assert summary.json()["ml"] == pytest.approx(
        {name: (expected.voxels == n).sum() * voxel_ml for n, name in ((1, "a"), (2, "b"))}
    )
    assert state.json()["models"][0]["takes"] == "volume"
    assert described.json()["outputs"][0] == {
        "name": "labels", "datatype": "UINT16", "shape": [-1, 8, 8, 8],
    }  # fmt: skip


def test_numbers_of_one_window_have_labels_by_the_protocol(ask, files):
    numbers = np.random.default_rng(0).normal(size=(2, 1, *WINDOW)).astype(np.float32)
    engine = ModelEngine.load(files["scans", "1"]).eval()

    async def talk(client):
        tensor = {"name": "inputs", "shape": [2, 1, *WINDOW], "datatype": "FP32",
                  "data": numbers.ravel().tolist()}  # fmt: skip
        return await client.post("/v2/models/scans/infer", json={"inputs": [tensor]})

    (output,) = ask(talk, files=files).json()["outputs"]
    assert (output["name"], output["shape"]) == ("labels", [2, 8, 8, 8])
    expected = engine(torch.from_numpy(numbers)).argmax(1)
    assert torch.equal(torch.tensor(output["data"]).reshape(2, *WINDOW), expected)


def declared(shape):
    """A header of 348 bytes that says it has many voxels, and holds none."""
    content = bytearray(gzip.decompress(encode_nifti(scan((2, 2, 2))))[:352])
    content[40:56] = struct.pack("<8h", 3, *shape, 1, 1, 1, 1)
    return bytes(content)


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"", "application/gzip", 400, "the body is empty"),
        (b"no scan", "application/gzip", 400, "no NIfTI file"),
        (b"\x1f\x8bbroken", "application/gzip", 400, "no NIfTI file, or is damaged"),
        (declared((9, 9, 9)), "application/gzip", 400, "declares 1,458 bytes"),
        (declared((30000, 30000, 9)), "application/gzip", 400, "max_voxels"),
        (gzip.compress(bytes(9 << 20)), "application/gzip", 400, "bytes unpacked"),
        (encode_nifti(scan((30, 30, 30))), "application/gzip", 400, "max_voxels=20,000"),
        (b"{}", "application/json", 415, "application/json"),
        (b"x", "image/png", 415, "image/png"),
    ],
)
def test_what_is_no_volume_is_refused(ask, files, body, kind, status, said):

    async def talk(client):
        return await client.post("/predict", content=body, headers={"Content-Type": kind})

    answer = ask(talk, files=files)
    assert answer.status_code == status
    assert said in answer.json()["error"]
