"""A model of volumes behind HTTP: a scan goes in, its mask or its millilitres come out."""

import asyncio
import errno
import gzip
import io
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deepseek.datasets import DataSpec
from deepseek.datasets.nifti import decode_nifti, encode_nifti
from deepseek.datasets.spec import FieldSpec
from deepseek.datasets.volume import Volume, make_affine
from deepseek.deploy.service import decoding
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.served_model import ServedModel
from deepseek.deploy.service.shelf import Pace, Version
from deepseek.deploy.service.volumes import open_scan
from deepseek.errors import DataError
from deepseek.medical.phantom_files import write_phantom
from deepseek.medical.phantoms import make_phantom
from deepseek.medical.regions import find_region
from deepseek.models import (
    CenterDetector3D,
    ModelEngine,
    UNet3D,
    VolumeDetector,
    VolumeSegmenter,
    WindowOptions,
)

from .conftest import LIMITS, InThread

pytest.importorskip("nibabel")
pytest.importorskip("pydicom")
ZIP = {"Content-Type": "application/zip"}
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


def save_detector(path, told=()):
    torch.manual_seed(0)
    fields = {"inputs": FieldSpec((1, *WINDOW), "float32"), "targets": FieldSpec((1, 4), "float32")}
    fields |= {f"score.{name}": FieldSpec((), "float32") for name in told}
    spec = DataSpec("detection", fields, ("nodule",), (1,), "spacing_6x6x6+window_-1000_400")
    module = CenterDetector3D(
        num_classes=1, features=(4, 4), blocks=1, skipped_levels=0, num_scores=len(told)
    )
    with torch.no_grad():  # a new head finds next to nothing
        module.head.weight += 0.5 * torch.randn_like(module.head.weight)
        module.head.bias += 3.0
    ModelEngine.wrap(module, spec).save(path)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "m.bin"
    return {("finder", "1"): save_detector(path)}


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    """A phantom as a zip of its series, and as it is."""
    folder = tmp_path_factory.mktemp("chest")
    phantom = make_phantom((16, 24, 24), (15, 14, 14), num_nodules=1, seed=0)
    series = write_phantom(phantom, folder, "scan", "dicom")
    content = {f"study/{path.name}": path.read_bytes() for path in sorted(series.iterdir())}
    return zipped({**content, "__MACOSX/._0.dcm": b"x", "DICOMDIR": b"y"}), phantom.volume


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """The folder that stands for the one in memory, which all tests of a machine share."""
    monkeypatch.setattr(decoding, "MEMORY_FOLDER", str(tmp_path))
    return tmp_path


def in_lungs(model):
    """What builds a version that looks at lungs alone, with room and time for a chest."""

    def build(name, version, path):
        roomy = replace(LIMITS, max_voxels=10**6, body_s=60.0, timeout_s=60.0)
        return Version(name, version, [model(path)], Pace(), roomy, region="lungs")

    return build


def test_a_detector_answers_the_findings_of_a_series(ask, detector, chest, memory):
    content, volume = chest
    engine, region = ModelEngine.load(detector["finder", "1"]), find_region("lungs")
    expected = VolumeDetector(engine, WindowOptions(overlap=0.5, flips=(2,), region=region))(volume)

    class Flipped(InThread):
        def __init__(self, path):
            super().__init__(path, overlap=0.5, flips=(2,))

    async def talk(client):
        return [
            await client.post("/predict", content=content, headers=ZIP),
            await client.post("/predict?mask=true", content=content, headers=ZIP),
            await client.get("/v2/models/finder"),
        ]

    found, mask, described = ask(talk, files=detector, build=in_lungs(Flipped))
    assert len(expected.scores) > 0
    assert found.status_code == 200, found.text
    rows = found.json()["findings"]
    assert [row["score"] for row in rows] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    places = [[row[axis] for axis in "xyz"] for row in rows]
    np.testing.assert_allclose(places, expected.points_mm, atol=0.01)
    assert mask.status_code == 422
    assert described.json()["outputs"][0]["shape"] == [-1, 100, 5]
    assert not list(memory.iterdir())


def test_scores_that_a_detector_tells_are_answered_by_their_name(ask, chest, memory, tmp_path):
    content, volume = chest
    path = save_detector(tmp_path / "m.bin", told=("malignancy", "texture"))
    engine = ModelEngine.load(path)
    expected = VolumeDetector(engine, WindowOptions(region=find_region("lungs")))(volume)

    async def talk(client):
        return [
            await client.post("/predict", content=content, headers=ZIP),
            await client.get("/v2/models/teller"),
            await client.get("/openapi.json"),
        ]

    found, described, interface = ask(talk, files={("teller", "1"): path}, build=in_lungs(InThread))
    rows = found.json()["findings"]
    assert len(rows) == len(expected.scores) > 0
    for name in ("malignancy", "texture"):
        assert [row[name] for row in rows] == pytest.approx(expected.told[name].tolist(), abs=1e-3)
    assert described.json()["outputs"][0]["shape"] == [-1, 100, 7]
    finding = interface.json()["components"]["schemas"]["Finding"]
    assert finding["additionalProperties"] == {"type": "number"}


def mha(volume, data="LOCAL"):
    d, h, w = volume.voxels.shape[1:]
    spacing = " ".join(f"{step:g}" for step in volume.spacing_mm[::-1])
    head = f"ObjectType = Image\nNDims = 3\nDimSize = {w} {h} {d}\nElementType = MET_SHORT\n"
    head += f"ElementSpacing = {spacing}\nElementDataFile = {data}\n"
    return head.encode() + volume.voxels[0].astype("<i2").tobytes()


def test_a_metaimage_file_is_a_volume_too(ask, files):
    upright = scan().reoriented("SPL")
    expected = VolumeSegmenter(ModelEngine.load(files["scans", "1"]))(upright)

    async def talk(client):
        kind = {"Content-Type": "application/octet-stream"}
        return await client.post("/predict", content=mha(upright), headers=kind)

    voxel_ml = 1.5 * 0.8 * 0.7 / 1000
    assert ask(talk, files=files).json()["ml"] == pytest.approx(
        {name: (expected.voxels == n).sum() * voxel_ml for n, name in ((1, "a"), (2, "b"))}
    )


def test_a_zip_of_too_many_files_is_refused(tmp_path):
    content = zipped({f"{number}": b"" for number in range(4097)})
    spec = DataSpec("segmentation", {}, ("none", "a"), (1, 1))
    with pytest.raises(DataError, match="declares 4,097 files"):
        open_scan(content, spec, 1000, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_zip_may_hold_a_licence_beside_its_slices(chest, tmp_path):
    with zipfile.ZipFile(io.BytesIO(chest[0])) as archive:
        slices = {name: archive.read(name) for name in archive.namelist()}
    bare = {name.removesuffix(".dcm"): content for name, content in slices.items()}
    fields = {"inputs": FieldSpec((1, *WINDOW), "float32")}
    spec = DataSpec("detection", fields, ("nodule",), (1,), "spacing_6x6x6+window_-1000_400")
    found = []
    for number, entries in enumerate((slices, bare)):
        (tmp_path / str(number)).mkdir()
        content = zipped({"LICENSE": b"as is", "study/README.txt": b"a chest", **entries})
        found.append(open_scan(content, spec, 10**6, str(tmp_path / str(number))))
    assert found[0].scan_shape == found[1].scan_shape == chest[1].voxels.shape[1:]
    np.testing.assert_array_equal(found[0].voxels, found[1].voxels)


def cut_off():
    """Bodies that end in their header, or say nothing sensible there."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.dcm", bytes(range(256)) * 8)
    start = 30 + len("a.dcm") + 4  # after the headers of the entry and of LZMA
    lzma = packed.getvalue()
    return {
        "nifti": encode_nifti(scan())[:150],
        "bare nifti": gzip.decompress(encode_nifti(scan()))[:100],
        "lzma": lzma[:start] + b"\xff" * 20 + lzma[start + 20 :],
        "name": zipped({"\u00e9.dcm": b""}).replace("\u00e9".encode(), b"\xff\xff"),
    }


@pytest.mark.parametrize("name", cut_off())
def test_bodies_cut_off_in_their_header_are_400(ask, files, name):

    async def talk(client):
        return await client.post("/predict", content=cut_off()[name], headers=GZIP)

    answer = ask(talk, files=files)
    assert answer.status_code == 400
    assert "damaged" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"PK\x03\x04broken", "damaged or encrypted"),
        (zipped({}), "declares 0 files"),
        (zipped({"a.dcm": bytes(2 << 20)}), "of 2,097,152 bytes"),
        (zipped({"../../a.dcm": b"no slice"}), "the zip"),
        (mha(scan(), "/etc/passwd"), "ElementDataFile='/etc/passwd'"),
        (mha(scan(), "secret.raw"), "is not there"),
    ],
    ids=["broken", "empty", "bomb", "no dicom", "elsewhere", "beside"],
)
def test_zips_and_headers_of_strangers_are_looked_at_first(ask, files, memory, body, said):

    async def talk(client):
        return await client.post("/predict", content=body, headers=ZIP)

    answer = ask(talk, files=files)
    assert answer.status_code in (400, 413)
    assert said in answer.json()["error"]
    assert "deepseek-scan" not in answer.text
    assert not list(memory.iterdir())


def test_what_reading_takes_is_imported_before_the_time_of_a_request_begins(monkeypatch):
    imported = []
    monkeypatch.setattr(decoding, "import_readers", imported.append)
    monkeypatch.setattr(resource, "setrlimit", lambda *limits: None)
    monkeypatch.setattr(signal, "signal", lambda *handlers: None)
    spec = DataSpec("segmentation", {}, ("none", "a"), (1, 1))
    decoding._begin(spec, 20.0, 1 << 30, True, "lungs")
    decoding._begin(spec, 20.0, 1 << 30, False, None)
    assert imported == ["lungs"]


@pytest.mark.long
def test_a_series_is_read_without_another_import(chest, tmp_path):
    (tmp_path / "scan.zip").write_bytes(chest[0])
    (tmp_path / "scan").mkdir()
    script = """
import sys
from deepseek.datasets import DataSpec
from deepseek.datasets.spec import FieldSpec
from deepseek.deploy.service.volumes import import_readers, open_scan

fields = {"inputs": FieldSpec((1, 8, 8, 8), "float32")}
spec = DataSpec("detection", fields, ("nodule",), (1,), "spacing_6x6x6+window_-1000_400")
import_readers("lungs")
before = set(sys.modules)
open_scan(open(sys.argv[1], "rb").read(), spec, 10**6, sys.argv[2], "lungs")
print([name for name in set(sys.modules) - before if not name.startswith("encodings")])
"""
    command = [sys.executable, "-c", script, tmp_path / "scan.zip", tmp_path / "scan"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def take_too_long(*_):
    os.kill(os.getpid(), signal.SIGALRM)  # what the limit does


def answer(text):
    return np.array([len(text)])


def test_who_waits_behind_one_that_ends_the_process_is_read():
    spec = DataSpec("classification", {}, ("none", "a"), (1, 1))
    decoder = decoding.Decoder(spec, num_processes=1, max_pixels=9, max_voxels=9, timeout_s=20)

    async def run():
        asked = [(take_too_long, "x"), (answer, "a"), (answer, "bb")]
        waiting = (decoder._run("the text", 400, "send another", *each) for each in asked)
        return await asyncio.gather(*waiting, return_exceptions=True)

    try:
        bad, *good = asyncio.run(run())
    finally:
        decoder.close()
    assert isinstance(bad, Refusal)
    assert bad.status == 422
    assert [each.tolist() for each in good] == [[1], [2]]


def test_a_full_memory_folder_is_not_used_and_no_damage(monkeypatch, memory):
    free = shutil.disk_usage(memory).free
    assert decoding._memory_folder(free // 2) == str(memory)
    assert decoding._memory_folder(2 * free) is None

    def fill(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill)
    spec = DataSpec("segmentation", {}, ("none", "a"), (1, 1))
    for content in (zipped({"a.dcm": b"slice"}), mha(scan())):
        with pytest.raises(DataError, match="no room to read it: No space left on device"):
            open_scan(content, spec, 20_000, str(memory))


def take_too_much(*_):
    return decoding._limited(lambda spec: (_ for _ in ()).throw(MemoryError))


@pytest.mark.parametrize(
    ("act", "said", "fix"),
    [
        (take_too_long, "could not be read within 20 s", "when the service is less busy"),
        (take_too_much, "it needs more than", "send less"),
    ],
)
def test_less_is_asked_for_only_where_the_size_is_the_reason(act, said, fix):
    spec = DataSpec("classification", {}, ("none", "a"), (1, 1))
    decoder = decoding.Decoder(spec, num_processes=1, max_pixels=9, max_voxels=9, timeout_s=20)
    try:
        with pytest.raises(Refusal, match=said) as refused:
            asyncio.run(decoder._run("the volume", 400, "send a file", act))
    finally:
        decoder.close()
    assert fix in refused.value.fix


def test_nothing_of_a_zip_stays_where_its_request_is_given_up_while_it_is_unpacked(
    memory, monkeypatch
):
    spec = DataSpec("segmentation", {}, ("none", "a"), (1, 1))
    decoder = decoding.Decoder(spec, num_processes=1, max_pixels=9, max_voxels=9, timeout_s=20)
    unpacking, content = [], zipped({"a.dcm": b"slice", "b.dcm": b"slice"})

    async def wait(what, status, fix, act, content, max_voxels, folder, region):
        unpacking.append(Path(folder))
        (Path(folder) / "00000.dcm").write_bytes(b"slice")
        await asyncio.sleep(60)

    remove = os.rmdir

    def remove_late(path, **options):  # the process writes on while the folder is removed
        with suppress(OSError):
            (unpacking[0] / "00001.dcm").write_bytes(b"slice")
        remove(path, **options)

    monkeypatch.setattr(decoder, "_run", wait)
    monkeypatch.setattr(os, "rmdir", remove_late)

    async def give_up():
        async with asyncio.timeout(0.1):
            await decoder.open_scan(content)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert len(unpacking) == 1
    assert not list(memory.iterdir())


def test_a_volume_may_take_as_long_as_its_request(files, detector):
    for models in (files, detector):
        ((name, number), path), *_ = models.items()
        version = Version(name, number, [InThread(path)], Pace(), LIMITS)
        assert version.decoder._timeout_s == LIMITS.timeout_s


def test_a_model_whose_outputs_are_no_numbers_is_not_served(files):
    engine = ModelEngine.load(files["scans", "1"])
    with torch.no_grad():
        engine.module.head.bias[1] = torch.nan
    with pytest.raises(DataError, match="not numbers"):
        ServedModel(engine)
