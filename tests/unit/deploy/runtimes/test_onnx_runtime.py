"""ONNX files: what is in them, and which of them are not opened."""

import json

import pytest
import torch
from tests.unit.deploy.runtimes.test_runtimes import make_bound, write

from deepseek.deploy import quantize
from deepseek.deploy.artefact import load_engine
from deepseek.deploy.runtimes import Conversion, Execution, onnx_runtime
from deepseek.deploy.samples import random_inputs
from deepseek.errors import CheckpointError, ConfigError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def test_names_opset_and_preprocessing_are_in_the_file(tmp_path):
    engine = make_bound("resnet")
    path, _ = write(engine, "onnxruntime", tmp_path, Conversion(opset=18))
    model = onnx.load(path)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    properties = {each.key: each.value for each in model.metadata_props}
    assert json.loads(properties["class_names"]) == list(engine.spec.class_names)
    assert json.loads(properties["data_spec"]) == engine.spec.to_json()
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert (shape[0].dim_param, shape[1].dim_value) == ("batch", 3)
    assert model.graph.input[0].name == "inputs"
    assert model.graph.output[0].name == "outputs"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("resnet", "QuantizeLinear"),
        pytest.param("encoder", "DynamicQuantizeLinear", marks=pytest.mark.long),
    ],
)
def test_int8_is_static_for_convolutions_and_dynamic_for_transformers(model, expected, tmp_path):
    engine = make_bound(model)
    calibration = random_inputs(engine, 8).split(4)
    path, artefact = write(engine, "onnxruntime", tmp_path, Conversion("int8", calibration))
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert expected in kinds
    assert 0 < artefact.difference < 0.1


def test_weights_of_large_models_are_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_runtime, "MAX_PROTOBUF_BYTES", 10)
    engine = make_bound("resnet")
    path, artefact = write(engine, "onnxruntime", tmp_path)
    assert set(artefact.hashes) == {"out.onnx", "out.onnx.data"}
    inputs = random_inputs(engine, 3)
    torch.testing.assert_close(load_engine(path)(inputs), engine(inputs), atol=1e-5, rtol=1e-4)
    (tmp_path / "out.onnx.data").unlink()
    with pytest.raises(CheckpointError, match=r"out\.onnx cannot be opened by onnxruntime"):
        load_engine(path)


@pytest.mark.parametrize("is_inner", [False, True])
def test_weights_outside_the_folder_are_not_read(is_inner, tmp_path):
    tensor = onnx.TensorProto(data_type=1, dims=[1], name="w", data_location=1)
    tensor.external_data.add(key="location", value="../secret")
    inner = onnx.helper.make_graph([], "inner", [], [], [tensor] if is_inner else [])
    branch = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    graph = onnx.helper.make_graph([branch], "g", [], [], [] if is_inner else [tensor])
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(CheckpointError, match=r"from '\.\./secret', which is not 'm\.onnx\.data'"):
        onnx_runtime.OnnxRuntime().open(path, Execution())


def test_what_is_no_onnx_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x00\x01no model" * 10)
    with pytest.raises(CheckpointError, match="cannot be opened by onnxruntime"):
        onnx_runtime.OnnxRuntime().open(path, Execution())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_products_of_integers_whose_scale_is_found_on_the_way_are_refused(runtime, tmp_path):
    small = quantize(make_bound("encoder"), "int8_dynamic").model
    with pytest.raises(ConfigError, match=f"{runtime} does not know the integer product of int8_d"):
        write(small, runtime, tmp_path)
