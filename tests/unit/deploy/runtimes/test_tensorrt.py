"""TensorRT where there is none: what is written, when it is tried, what is said instead."""

import pytest
import torch
from tests.unit.deploy.runtimes.test_runtimes import make_bound

from deepseek.deploy.artefact import convert, load_engine
from deepseek.deploy.optimization.candidate import list_candidates
from deepseek.deploy.runtimes import Conversion, Execution, onnx_runtime, tensorrt
from deepseek.deploy.runtimes.tensorrt import PROVIDER, TensorRt
from deepseek.deploy.samples import random_inputs
from deepseek.errors import CheckpointError, ConfigError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture
def present(monkeypatch):
    """A machine with a GPU and TensorRT, as far as anybody asks."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [PROVIDER, "CPUExecutionProvider"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tensorrt, "_has_libraries", lambda: True)


@pytest.fixture
def asked(monkeypatch):
    """Whoever asks whether something is missing hears that nothing is."""
    monkeypatch.setattr(TensorRt, "find_missing", lambda self: None)


def test_it_is_a_candidate_where_gpu_libraries_and_provider_are_there(present, monkeypatch):
    assert TensorRt().find_missing() is None
    found = list(list_candidates(["model"], ["tensorrt"], ["fp32", "bf16", "fp16", "int8"]))
    assert sorted(each.name for each, _ in found) == [
        "tensorrt bf16", "tensorrt fp16", "tensorrt fp32", "tensorrt int8",
    ]  # fmt: skip
    assert {reason for _, reason in found} == {""}  # whatever units the processor has
    monkeypatch.setattr(tensorrt, "_has_libraries", lambda: False)
    assert "pip install onnxruntime-gpu tensorrt" in str(TensorRt().find_missing())


def test_elsewhere_one_line_says_that_it_is_not_there(monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    found = list(list_candidates(["model", "pruned"], ["tensorrt", "eager"], ["fp32", "bf16"]))
    [(_, reason)] = [each for each in found if each[0].runtime == "tensorrt"]
    assert reason.startswith("not on this machine: pip install onnxruntime-gpu tensorrt")
    engine = make_bound("resnet")
    with pytest.raises(ConfigError, match="what tensorrt needs is not installed"):
        convert(engine, "m.trt.onnx", random_inputs(engine, 2), "tensorrt")


@pytest.mark.parametrize(
    ("precision", "option"),
    [("fp32", {}), ("bf16", {"trt_bf16_enable": "True"}), ("int8", {"trt_int8_enable": "True"})],
)
def test_the_engine_is_built_in_the_precision_of_the_conversion(precision, option):
    first, *rest = TensorRt()._providers(Execution(precision=precision))
    assert first == (PROVIDER, option)
    assert rest == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_it_writes_onnx_and_refuses_what_computes_without_tensorrt(asked, tmp_path):
    engine, path = make_bound("resnet"), tmp_path / "m.trt.onnx"
    inputs = random_inputs(engine, 3)
    convert(engine, path, inputs, "tensorrt", Conversion("fp16"), compares=False)
    plain = onnx_runtime.OnnxRuntime().open(path, Execution())
    torch.testing.assert_close(plain(inputs), engine(inputs), atol=1e-5, rtol=1e-4)
    with pytest.raises(CheckpointError, match="has chosen CPUExecutionProvider instead"):
        load_engine(path)


def test_int8_has_its_zeros_at_zero(asked, tmp_path):
    engine, path = make_bound("resnet"), tmp_path / "m.trt.onnx"
    calibration = random_inputs(engine, 8).split(4)
    convert(
        engine, path, calibration[0], "tensorrt", Conversion("int8", calibration), compares=False
    )
    model = onnx.load(path)
    kinds = {node.op_type for node in model.graph.node}
    assert "QuantizeLinear" in kinds
    assert "DynamicQuantizeLinear" not in kinds
    zeros = [each for each in model.graph.initializer if each.name.endswith("zero_point")]
    assert zeros
    assert not any(onnx.numpy_helper.to_array(each).any() for each in zeros)
    assert all(each.data_type == onnx.TensorProto.INT8 for each in zeros if each.data_type != 6)
