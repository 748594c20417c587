"""What every runtime does: a file that computes what the model does, at any batch size."""

import pytest
import torch
from tests.unit.models.test_contract import make_engine, make_spec

from deepseek.deploy import artefact
from deepseek.deploy.artefact import convert, load_engine, read_description
from deepseek.deploy.runtimes import RUNTIMES, Conversion, Execution, program
from deepseek.deploy.runtimes.opened import Opened, torch_threads
from deepseek.deploy.samples import random_inputs
from deepseek.errors import ConfigError

CASES = [
    ("eager", "resnet"), ("eager", "encoder"), ("exported", "encoder"), ("onnxruntime", "resnet"),
    ("openvino", "encoder"),
]  # fmt: skip
LONG = [
    ("onnxruntime", "encoder"), ("openvino", "resnet"), ("executorch", "encoder"),
    ("aoti", "resnet"), ("aoti", "encoder"), ("compiled", "resnet"), ("compiled", "encoder"),
]  # fmt: skip


def make_bound(name):
    engine = make_engine(name).eval()
    engine.bind(make_spec(name))
    return engine


def skip_if_missing(name):
    if (command := RUNTIMES.get(name)().find_missing()) is not None:
        pytest.skip(command)


def write(engine, name, folder, conversion=Conversion(), execution=None):  # noqa: B008
    skip_if_missing(name)
    path = folder / f"out{RUNTIMES.get(name).suffix}"
    return path, convert(engine, path, random_inputs(engine, 4), name, conversion, execution)


@pytest.mark.parametrize(
    ("name", "model"), [*CASES, *(pytest.param(*case, marks=pytest.mark.long) for case in LONG)]
)
def test_a_file_computes_what_the_model_does_for_other_batches(name, model, tmp_path):
    engine = make_bound(model)
    path, artefact = write(engine, name, tmp_path, execution=Execution(threads=1))
    assert artefact.difference < 1e-5
    assert artefact.architecture == model
    loaded = load_engine(path)
    assert loaded.spec == engine.spec
    batches = [random_inputs(engine, size) for size in (1, 5)]
    batches.append(batches[1].transpose(-1, -2) if model == "resnet" else batches[1][:, 1:])
    if name == "executorch":
        batches.pop()  # its length is fixed
    for batch in batches:  # the last one is not contiguous
        torch.testing.assert_close(loaded(batch), engine(batch), atol=1e-5, rtol=1e-4)


@pytest.mark.long
def test_a_program_of_one_sample_takes_batches_all_the_same(tmp_path):
    engine = make_bound("resnet")
    path, _ = write(engine, "executorch", tmp_path)
    assert read_description(path).open_dims == []
    images = random_inputs(engine, 5).to(memory_format=torch.channels_last)
    torch.testing.assert_close(load_engine(path)(images), engine(images), atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"samples of shape \(3, 8, 8\), the program takes \(3,"):
        load_engine(path)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("outputs", ["sequence", "tokens"])
def test_a_short_text_is_predicted_by_a_program_of_one_length(outputs, tmp_path, monkeypatch):
    for module in (artefact, program):
        monkeypatch.setattr(module, "open_dims", lambda engine: ("batch",))
    engine = make_engine("encoder", outputs=outputs).eval()
    engine.bind(make_spec("encoder"))
    path, _ = write(engine, "exported", tmp_path)
    loaded = load_engine(path)
    short = random_inputs(engine, 3)[:, :5].clamp(min=1)
    torch.testing.assert_close(loaded(short), engine(short), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["eager", "exported"])
def test_lower_precision_is_in_the_program_whatever_autocast_is_around_it(name, tmp_path):
    engine = make_bound("encoder")
    inputs = random_inputs(engine, 4)
    outputs = {}
    for precision in ("fp32", "bf16"):
        (tmp_path / precision).mkdir()
        path, _ = write(engine, name, tmp_path / precision, Conversion(precision))
        with torch.autocast("cpu", dtype=torch.float16):
            outputs[precision] = load_engine(path)(inputs)
        assert outputs[precision].dtype is torch.float32
    torch.testing.assert_close(outputs["fp32"], engine(inputs), atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = engine(inputs).float()
    torch.testing.assert_close(outputs["bf16"], lower, atol=5e-3, rtol=0)
    assert not torch.equal(outputs["bf16"], outputs["fp32"])


def test_an_opened_model_computes_in_float32_with_the_threads_asked_for():
    before = torch.get_num_threads()
    module = Opened(lambda inputs: inputs * torch.get_num_threads(), threads=3)
    assert module(torch.ones(1)).item() == 3
    assert torch.get_num_threads() == before
    half = torch.full((1,), 0.5, dtype=torch.bfloat16)
    assert Opened(lambda inputs: inputs)(half).dtype is torch.float32
    with torch_threads(None):
        assert torch.get_num_threads() == before
    assert Opened(lambda inputs: inputs)(torch.ones(1)).item() == 1


def test_an_opened_model_may_be_set_to_eval_or_training(tmp_path):
    path, _ = write(make_bound("encoder"), "exported", tmp_path)
    loaded = load_engine(path)
    loaded.train().eval()
    assert len(loaded.predict(random_inputs(loaded, 3))) == 3


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_int8_without_calibration_is_refused(name, tmp_path):
    skip_if_missing(name)
    with pytest.raises(ConfigError, match="precision='int8' needs calibration data"):
        write(make_bound("resnet"), name, tmp_path, Conversion("int8"))
    assert not list(tmp_path.glob("*out*"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert RUNTIMES.get("openvino")().find_missing() == "pip install 'deepseek-framework[deploy]'"
    assert RUNTIMES.get("executorch")().find_missing() == "pip install 'deepseek-framework[edge]'"
