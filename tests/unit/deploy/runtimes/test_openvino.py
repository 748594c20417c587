"""OpenVINO: the precision that it is told, what is in its files, and the weights beside them."""

import json

import pytest
from tests.unit.deploy.runtimes.test_runtimes import make_bound, write

from deepseek.deploy import Calibration, quantize
from deepseek.deploy.artefact import load_engine
from deepseek.deploy.runtimes import Conversion, Execution
from deepseek.deploy.runtimes.openvino import HINTS, OpenVino
from deepseek.deploy.samples import random_inputs
from deepseek.errors import CheckpointError, ConfigError

openvino = pytest.importorskip("openvino")
pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("known")
        patch.setenv("XDG_DATA_HOME", str(folder))
        engine = make_bound("encoder")
        return engine, write(engine, "openvino", folder)[0]


def test_names_and_preprocessing_are_in_the_file(known):
    engine, path = known
    model = openvino.Core().read_model(path)
    found = json.loads(model.get_rt_info(["deepseek", "data_spec"]).value)
    assert found == engine.spec.to_json()
    names = json.loads(model.get_rt_info(["deepseek", "class_names"]).value)
    assert names == list(engine.spec.class_names)
    assert model.inputs[0].partial_shape.is_dynamic


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_and_threads_are_told_never_left_to_it(known, precision, monkeypatch):
    _, path = known
    told = {}
    compile_model = openvino.Core.compile_model

    def listen(core, model, device, options):
        told.update(options)
        return compile_model(core, model, device, options)

    monkeypatch.setattr(openvino.Core, "compile_model", listen)
    OpenVino().open(path, Execution(threads=1, precision=precision))
    assert told["INFERENCE_PRECISION_HINT"] == HINTS[precision]
    assert told["INFERENCE_NUM_THREADS"] == 1


@pytest.mark.long
@pytest.mark.parametrize("precision", ["int8", "int8_bf16"])
def test_int8_is_quantised_from_calibration_data(precision, tmp_path):
    engine = make_bound("resnet")
    calibration = random_inputs(engine, 8).split(4)
    path, artefact = write(engine, "openvino", tmp_path, Conversion(precision, calibration))
    kinds = [node.get_type_name() for node in openvino.Core().read_model(path).get_ops()]
    assert "FakeQuantize" in kinds
    assert 0 < artefact.difference < 0.1


def test_missing_or_changed_weights_are_an_error(known, tmp_path):
    _, source = known
    for file in (*OpenVino().files_of(source), source.with_name(source.name + ".json")):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "out.bin"
    weights.write_bytes(b"\x00" * weights.stat().st_size)
    with pytest.raises(CheckpointError, match=r"out\.bin is not what was exported"):
        load_engine(tmp_path / source.name)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"out\.bin is missing"):
        load_engine(tmp_path / source.name)


def test_weights_never_replace_a_file_of_something_else(tmp_path):
    engine = make_bound("resnet")
    engine.save(tmp_path / "out.bin")
    content = (tmp_path / "out.bin").read_bytes()
    with pytest.raises(ConfigError, match=r"out\.xml would come with out\.bin"):
        write(engine, "openvino", tmp_path)
    assert (tmp_path / "out.bin").read_bytes() == content


def test_what_quantize_has_made_static_keeps_its_integers(tmp_path):
    pytest.importorskip("onnxscript")
    engine = make_bound("resnet")
    given = Calibration(data=[random_inputs(engine, 8)])
    small = quantize(engine, "int8_static", calibration=given).model
    path, artefact = write(small, "openvino", tmp_path)
    kinds = [op.get_type_name() for op in openvino.Core().read_model(path).get_ops()]
    assert kinds.count("FakeQuantize") == kinds.count("Convolution") > 0
    assert artefact.difference < 0.05
    assert path.with_suffix(".bin").stat().st_size < bytes_of(engine) / 2


def bytes_of(engine):
    return sum(tensor.nbytes for tensor in engine.state_dict().values())
