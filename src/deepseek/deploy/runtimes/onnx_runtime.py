"""ONNX, run by ONNX Runtime: a file that many programs and languages read.

`int8` is ONNX Runtime's own quantiser: static, from calibration data, where convolutions do the
work; dynamic, without, where matrix products do.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deepseek.deploy.runtimes.foreign import (
    check_calibration,
    check_schemes,
    converting,
    find_missing_of,
    opening,
    properties_of,
)
from deepseek.deploy.runtimes.opened import Opened
from deepseek.deploy.runtimes.program import open_dims, trace
from deepseek.deploy.runtimes.runtime import Conversion, Execution, Runtime
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import ModelEngine
from deepseek.registry import import_extra

INPUT, OUTPUT = "inputs", "outputs"
MAX_PROTOBUF_BYTES = 2_000_000_000
"""A file of protobuf has 2 GiB at most: the weights of a larger model are a file of their own."""


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"
    suffix = ".onnx"
    precisions = ("fp32", "int8")
    runs_code = False
    has_open_dims = True

    def find_missing(self) -> str | None:
        """Return how to install what is missing."""
        return find_missing_of("deploy", "onnx", "onnxscript", "onnxruntime")

    def convert(
        self, engine: ModelEngine, inputs: Tensor, path: Path, conversion: Conversion
    ) -> None:
        """Write the file, checked by the checker of ONNX."""
        onnx = import_extra("onnx", "deploy")
        check_schemes(engine, self.name)
        if conversion.precision == "int8":
            check_calibration(conversion)
        graph = trace(engine, inputs)
        with converting(engine, self.name), tempfile.TemporaryDirectory() as folder:
            is_int8 = conversion.precision == "int8"
            target = Path(folder) / "fp32.onnx" if is_int8 else path
            write_onnx(engine, graph, inputs, target, conversion.opset)
            if is_int8:
                self._quantize(target, path, conversion.calibration)
            _add_metadata(path, engine)
            onnx.checker.check_model(str(path), full_check=True)

    def files_of(self, path: Path) -> tuple[Path, ...]:
        """Return the file, and that of its weights if they are apart."""
        weights = _weights_of(path)
        return (path, weights) if weights.is_file() else (path,)

    def open(self, path: Path, execution: Execution) -> nn.Module:
        """Return the model in a session of its own threads."""
        ort = import_extra("onnxruntime", "deploy")
        options = ort.SessionOptions()
        options.intra_op_num_threads = execution.threads or torch.get_num_threads()
        options.log_severity_level = 3
        with opening(path, self.name):
            _check_external_data(path)
            providers = self._providers(execution)
            session = ort.InferenceSession(path, options, providers=providers)
            self._check_session(path, session)

        def call(inputs: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {INPUT: inputs.numpy()})[0])

        return Opened(call)

    def _quantize(self, source: Path, target: Path, calibration: Sequence[Tensor]) -> None:
        quantize_file(source, target, calibration)

    def _providers(self, execution: Execution) -> list:
        """Return what computes, as ONNX Runtime calls it, the preferred first."""
        del execution
        return ["CPUExecutionProvider"]

    def _check_session(self, path: Path, session) -> None:
        """Refuse a session that does not compute with what it was asked to."""


def write_onnx(
    engine: ModelEngine,
    graph: torch.export.ExportedProgram,
    inputs: Tensor,
    path: Path,
    opset: int | None,
) -> None:
    """Write a graph as ONNX; weights beyond what one file holds lie in another beside it."""
    num_bytes = sum(tensor.nbytes for tensor in engine.state_dict().values())
    names = ({i: name for i, name in enumerate(open_dims(engine))},)
    program = torch.onnx.export(
        graph, (inputs,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT],
        opset_version=opset, dynamic_shapes=names, verbose=False,
    )  # fmt: skip
    if program is None:  # only where it was told to write a file itself
        raise RuntimeError("the exporter returned nothing")
    written = program.model.opset_imports.get("")
    if opset is not None and written != opset:
        raise ConfigError(
            f"opset={opset} cannot be written: the exporter stays at {written}",
            fix=f"leave it out, or choose {written} or another that it knows",
        )
    program.save(path, external_data=num_bytes > MAX_PROTOBUF_BYTES)


def quantize_file(
    source: Path, target: Path, calibration: Sequence[Tensor], *, is_symmetric: bool = False
) -> None:
    """Write a file in int8.

    Args:
        source: in float32.
        target: is written.
        calibration: batches of inputs.
        is_symmetric: static in any case, and the zero of activations at 0; else dynamic where
            matrix products do the work.
    """
    onnx = import_extra("onnx", "deploy")
    tools = import_extra("onnxruntime.quantization", "deploy")
    prepared = source.with_name("prepared.onnx")
    import_extra("onnxruntime.quantization.shape_inference", "deploy").quant_pre_process(
        source, prepared, skip_symbolic_shape=True
    )
    counts = [node.op_type for node in onnx.load(prepared).graph.node]
    int8, uint8 = tools.QuantType.QInt8, tools.QuantType.QUInt8
    convolves = counts.count("Conv") > counts.count("MatMul") + counts.count("Gemm")
    if not convolves and not is_symmetric:
        tools.quantize_dynamic(prepared, target, weight_type=int8, per_channel=True)
        return

    class Reader(tools.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(calibration)

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.contiguous().numpy()}

    tools.quantize_static(
        prepared, target, Reader(), quant_format=tools.QuantFormat.QDQ, per_channel=True,
        activation_type=int8 if is_symmetric else uint8, weight_type=int8,
        extra_options={"ActivationSymmetric": is_symmetric},
    )  # fmt: skip


def _add_metadata(path: Path, engine: ModelEngine) -> None:
    onnx = import_extra("onnx", "deploy")
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, properties_of(engine))
    path.write_bytes(model.SerializeToString())


def _weights_of(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def _check_external_data(path: Path) -> None:
    """Refuse a file that reads any other than that of its own weights."""
    onnx = import_extra("onnx", "deploy")
    model = onnx.load(path, load_external_data=False)
    allowed = _weights_of(path).name
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        tensors = []
        if graphs:
            graph = graphs.pop()
            nodes += graph.node
            tensors += graph.initializer
        for attribute in (a for node in nodes for a in node.attribute):
            graphs += [attribute.g, *attribute.graphs] if attribute.HasField("g") else []
            tensors += [attribute.t, *attribute.tensors]
        nodes = []
        for entry in (entry for tensor in tensors for entry in tensor.external_data):
            if entry.key == "location" and entry.value != allowed:
                raise CheckpointError(
                    f"{path} reads its weights from {entry.value!r}, which is not {allowed!r}",
                    fix="do not trust the file; export the model again",
                )
