"""A converted model and its description: what is opened, what is refused and why."""

import json
import os

import pytest
import torch
from tests.unit.models.test_contract import make_engine, make_spec
from torch import nn

from deepseek.deploy.artefact import convert, description_of, load_engine, locate, read_description
from deepseek.deploy.comparison import compare_outputs
from deepseek.deploy.runtimes.in_torch import Eager
from deepseek.deploy.samples import random_inputs
from deepseek.errors import CheckpointError, ConfigError


@pytest.fixture
def known(tmp_path):
    engine = make_engine("encoder").eval()
    engine.bind(make_spec("encoder"))
    path = tmp_path / "m.bin"
    return engine, path, convert(engine, path, random_inputs(engine, 4), "eager")


def edit(path, **changes):
    source = description_of(path)
    source.write_text(json.dumps(json.loads(source.read_text()) | changes))


def test_a_description_says_what_the_model_takes_and_where_it_was_made(known):
    engine, path, artefact = known
    found = read_description(path)
    assert (found.runtime, found.architecture, found.num_classes) == ("eager", "encoder", 5)
    assert found.spec == engine.spec.to_json()
    assert found.hashes == artefact.hashes == {"m.bin": found.hashes["m.bin"]}
    assert found.machine["torch"] == torch.__version__
    assert found.open_dims == ["batch", "length"]
    assert not [each for each in path.parent.iterdir() if each.name.startswith(".")]


def test_what_a_killed_export_left_is_no_obstacle(known):
    engine, path, _ = known
    left = path.with_name(f".{path.name}.{os.getpid()}")
    left.mkdir()
    (left / path.name).write_bytes(b"half of it")
    convert(engine, path, random_inputs(engine, 4), "eager")
    assert not left.exists()


def test_a_folder_of_optimize_stands_for_its_best(known):
    engine, path, _ = known
    inputs = random_inputs(engine, 2)
    best = path.with_name("best.pt2")
    convert(engine, best, inputs, "exported")
    assert locate(best.parent) == best
    torch.testing.assert_close(load_engine(best.parent)(inputs), engine(inputs))
    description_of(best).unlink()
    with pytest.raises(ConfigError, match="a folder in which `optimize` has left no best model"):
        load_engine(best.parent)


def test_a_file_without_its_description_is_refused(known):
    _, path, _ = known
    path.rename(path.with_name("m.onnx"))
    with pytest.raises(CheckpointError, match=r"m\.onnx has no description beside it"):
        load_engine(path.with_name("m.onnx"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hashes": {}}, CheckpointError, "is not what was exported: its SHA-256 is"),
        ({"format_version": 99}, CheckpointError, "has format_version=99"),
        ({"hashes": ["m.bin"]}, CheckpointError, "hashes is no table of files"),
        ({"extra": 1}, CheckpointError, "is damaged"),
        ({"execution": 3}, CheckpointError, "is damaged"),
        ({"runtime": "exporte"}, ConfigError, "unknown runtime 'exporte'"),
        ({"spec": {"task": 1}}, CheckpointError, "stored data spec is malformed"),
    ],
)
def test_a_changed_description_is_refused(known, changes, error, message):
    _, path, _ = known
    edit(path, **changes)
    with pytest.raises(error, match=message):
        load_engine(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 200_000, b"\xff\xfe"])
def test_a_damaged_description_is_refused(known, content):
    _, path, _ = known
    description_of(path).write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_engine(path)


def test_another_machine_is_warned_of_where_the_file_was_chosen_by_measurement(known):
    _, path, artefact = known
    other = artefact.machine | {"processor": "abacus"}
    edit(path, machine=other)
    load_engine(path)
    edit(path, measured={"ms": 1.0})
    with pytest.warns(UserWarning, match="measurement on another machine .*'abacus'"):
        load_engine(path)


def test_arguments_are_checked_before_anything_is_converted(known, tmp_path):
    engine, _, _ = known
    inputs = random_inputs(engine, 4)
    with pytest.raises(ConfigError, match="1 samples are too few"):
        convert(engine, tmp_path / "a.bin", inputs[:1], "eager")
    with pytest.raises(ConfigError, match=r"a\.onnx is no name for a file of eager"):
        convert(engine, tmp_path / "a.onnx", inputs, "eager")
    with pytest.raises(ConfigError, match="is not a folder"):
        convert(engine, tmp_path / "none" / "a.bin", inputs, "eager")
    with pytest.raises(ConfigError, match="the model is on meta"):
        convert(make_bound_on_meta(), tmp_path / "a.bin", inputs, "eager")


def make_bound_on_meta():
    engine = make_engine("encoder").to("meta")
    engine.bind(make_spec("encoder"))
    return engine


class WrongAt(nn.Module):
    """Doubles its inputs, but not those of one batch size or length."""

    def __init__(self, size, dim):
        super().__init__()
        self.size, self.dim = size, dim

    def forward(self, x):
        return x * (3.0 if x.shape[self.dim] == self.size else 2.0)


@pytest.mark.parametrize(("size", "dim"), [(4, 0), (1, 0), (3, 0), (4, 1)])
def test_outputs_are_compared_at_several_sizes(size, dim, tmp_path):
    inputs, right = torch.ones(4, 8), WrongAt(99, 0)
    dims = ("batch", "length")
    assert compare_outputs(right, right, inputs, "fp32", tmp_path, dims) == 0
    with pytest.raises(CheckpointError, match=r"numbers that differ by 5\.0e-01"):
        compare_outputs(right, WrongAt(size, dim), inputs, "fp32", tmp_path, dims)


def test_nan_and_another_shape_are_wrong(tmp_path):
    inputs, right = torch.ones(4, 8), WrongAt(99, 0)
    with pytest.raises(CheckpointError, match="differ by nan"):
        compare_outputs(right, lambda x: right(x) * float("nan"), inputs, "fp32", tmp_path)
    with pytest.raises(CheckpointError, match=r"a \(8,\), the model \(4, 8\)"):
        compare_outputs(right, lambda x: right(x)[0], inputs, "fp32", tmp_path)


@pytest.fixture
def apart(monkeypatch):
    """The runtime `eager`, but with a second file, as OpenVINO has one."""

    def write(self, engine, inputs, path, conversion):
        eager(self, engine, inputs, path, conversion)
        path.with_suffix(".weights").write_bytes(b"weights")

    eager = Eager.convert
    monkeypatch.setattr(Eager, "convert", write)
    monkeypatch.setattr(Eager, "files_of", lambda self, path: (path, path.with_suffix(".weights")))


def test_a_file_that_was_put_in_place_of_an_exported_one_is_kept(known, apart):
    engine, path, _ = known
    inputs, weights = random_inputs(engine, 2), path.with_suffix(".weights")
    for _ in range(2):  # its own are replaced
        convert(engine, path, inputs, "eager")
    weights.write_bytes(b"a model that was trained since")
    with pytest.raises(ConfigError, match=r"m\.weights, which is a file of something else"):
        convert(engine, path, inputs, "eager")
    assert weights.read_bytes() == b"a model that was trained since"


def test_of_a_smaller_export_what_was_put_in_place_of_the_rest_is_kept(known, apart, monkeypatch):
    engine, path, _ = known
    inputs, weights = random_inputs(engine, 2), path.with_suffix(".weights")
    two, one = Eager.files_of, lambda self, path: (path,)
    for content in (None, b"a model that was trained since"):
        monkeypatch.setattr(Eager, "files_of", two)
        convert(engine, path, inputs, "eager")
        if content is not None:
            weights.write_bytes(content)
        monkeypatch.setattr(Eager, "files_of", one)
        convert(engine, path, inputs, "eager")
        assert weights.exists() == (content is not None)


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"a": 1}', b"\xff"])
def test_a_description_of_something_else_does_not_stop_an_export(known, apart, content):
    engine, path, _ = known
    inputs, weights = random_inputs(engine, 2), path.with_suffix(".weights")
    description_of(path).write_bytes(content)
    weights.write_bytes(b"of whom is not known")
    with pytest.raises(ConfigError, match=r"m\.weights, which is a file of something else"):
        convert(engine, path, inputs, "eager")
    weights.unlink()
    convert(engine, path, inputs, "eager")
    assert read_description(path).runtime == "eager"
