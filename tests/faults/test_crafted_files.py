"""Files made to harm, wherever one is loaded: no code runs, all are refused, memory is flat."""

import json
import os
import pickle
import resource
import shutil
import zipfile

import pytest
import torch
from tests.faults.trials import make_trainer

from deepseek.checkpoint import Checkpoint, CheckpointStore, load_checkpoint
from deepseek.checkpoint.durable_file import fingerprint
from deepseek.checkpoint.manifest import MANIFEST, write_manifest
from deepseek.cli.main import run as run_command
from deepseek.errors import DeepSeekError
from deepseek.models import ModelEngine
from deepseek.models.weights import read_weights

MAX_GROWTH_BYTES = 200 << 20


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def safetensors(header, data=b"\0" * 64, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape, start, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


CRAFTED = {
    "overlap": safetensors({"a": tensor([16], 0, 64), "b": tensor([16], 0, 64)}),
    "huge header": safetensors(b"{}", length=1 << 62),
    "header of a gigabyte": safetensors(b"{}", length=1 << 30),
    "shape bomb": safetensors({"a": tensor([1 << 40, 1 << 20], 0, 64)}),
    "overflowing shape": safetensors({"a": tensor([1 << 33, 1 << 33], 0, 64)}),
    "negative shape": safetensors({"a": tensor([-16], 0, 64)}),
    "offsets outside": safetensors({"a": tensor([1 << 20], 0, 1 << 22)}),
    "offsets backwards": safetensors({"a": tensor([16], 64, 0)}),
    "hole": safetensors({"a": tensor([8], 32, 64)}),
    "unknown dtype": safetensors({"a": tensor([16], 0, 64, "EVIL")}),
    "deep nesting": safetensors(b"[" * 100_000),
    "not JSON": safetensors(b"\xff" * 40),
    "empty": b"",
}


def crafted(kind, tmp_path):
    marker = tmp_path / "ran"
    if kind == "pickle":
        return pickle.dumps(Evil(marker)), marker
    if kind == "torch archive":
        path = tmp_path / "evil_archive"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Evil(marker)))
            archive.writestr("archive/version", "3")
        return path.read_bytes(), marker
    return CRAFTED[kind], marker


def as_model_file(content, folder):
    (folder / "model.bin").write_bytes(content)
    return lambda: ModelEngine.load(folder / "model.bin")


def as_weights(suffix, **allowed):
    def make(content, folder):
        path = folder / f"weights{suffix}"
        path.write_bytes(content)
        return lambda: read_weights(path, **allowed)

    return make


def list_anew(folder, step):
    write_manifest(folder, step, {path.name: fingerprint(path) for path in folder.iterdir()})


def as_checkpoint(name):
    """A folder whose manifest fits the harmful file: whoever makes the one can make the other."""

    def make(content, folder):
        saved = CheckpointStore(folder).save(
            Checkpoint(1, {"model": {"a": torch.zeros(4)}, "optimizer": {"b": torch.zeros(4)}}, {})
        )
        (saved / name).write_bytes(content)
        if name != MANIFEST:
            (saved / MANIFEST).unlink()
            list_anew(saved, 1)
        return lambda: load_checkpoint(saved)

    return make


def as_command(*words):
    def make(content, folder):
        (folder / "model.bin").write_bytes(content)
        (folder / "a.png").write_bytes(b"")

        def call():
            code = run_command([str(word).replace("FOLDER", str(folder)) for word in words])
            assert code in (2, 3, 4)
            raise DeepSeekError("refused")

        return call

    return make


ENTRIES = {
    "model file": as_model_file,
    "weights": as_weights(".safetensors"),
    "weights, model file": as_weights(".bin"),
    "weights, pickled, allowed": as_weights(".pt", allow_pickle=True),
    "weights, pickled": as_weights(".pt"),
    "checkpoint, tensors": as_checkpoint("model.safetensors"),
    "checkpoint, state": as_checkpoint("state.json"),
    "checkpoint, manifest": as_checkpoint(MANIFEST),
    "predict": as_command("predict", "FOLDER/model.bin", "FOLDER/a.png"),
    "evaluate": as_command("evaluate", "FOLDER/model.bin", "--data", "FOLDER"),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", [*CRAFTED, "pickle", "torch archive"])
def test_nothing_runs_all_are_refused_and_memory_is_flat(tmp_path, entry, kind, capsys):
    content, marker = crafted(kind, tmp_path)
    load = ENTRIES[entry](content, tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DeepSeekError):
        load()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MAX_GROWTH_BYTES
    assert not marker.exists()


@pytest.mark.parametrize(
    "state", [[], {}, {"batch_size": 16, "data": 5}, {"batch_size": 16, "optimizer": []}, "x", None]
)
def test_a_state_of_another_make_is_refused(tmp_path, whole, state):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    newest = max((run / "checkpoints").glob("step_*"), key=lambda p: int(p.name[5:]))
    (newest / "state.json").write_text(json.dumps(state))
    (newest / MANIFEST).unlink()
    list_anew(newest, int(newest.name[5:]))
    with pytest.raises(DeepSeekError):
        make_trainer(run, True).fit()
