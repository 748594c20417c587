"""OpenVINO's intermediate representation: `.xml`, its weights in `.bin`.

Left to itself OpenVINO computes in bf16 where the processor can; here the precision is always
set. `int8` is quantised by NNCF from calibration data; what it leaves in floats is float32, or
bf16 for `int8_bf16`.
"""

import tempfile
import threading
from collections.abc import Sequence
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
from deepseek.deploy.runtimes.onnx_runtime import write_onnx
from deepseek.deploy.runtimes.opened import Opened
from deepseek.deploy.runtimes.program import has_node, trace
from deepseek.deploy.runtimes.runtime import Conversion, Execution, Runtime
from deepseek.models import ModelEngine
from deepseek.models.quantized import schemes_of
from deepseek.registry import import_extra

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32", "int8_bf16": "bf16"}


class OpenVino(Runtime):
    """OpenVINO on the CPU."""

    name = "openvino"
    suffix = ".xml"
    precisions = tuple(HINTS)
    runs_code = False
    has_open_dims = True

    def find_missing(self) -> str | None:
        """Return how to install what is missing."""
        return find_missing_of("deploy", "openvino", "nncf")

    def convert(
        self, engine: ModelEngine, inputs: Tensor, path: Path, conversion: Conversion
    ) -> None:
        """Write both files."""
        openvino = import_extra("openvino", "deploy")
        is_int8 = conversion.precision.startswith("int8")
        if is_int8:
            check_calibration(conversion)
        check_schemes(engine, self.name)
        graph = trace(engine, inputs)
        with converting(engine, self.name), tempfile.TemporaryDirectory() as folder:
            source = _with_repeated_keys(graph)
            if "int8_static" in schemes_of(engine.changes):
                # its reader of programs does not know the operators of integers, that of ONNX does
                source = Path(folder) / "model.onnx"
                write_onnx(engine, graph, inputs, source, None)
            model = openvino.convert_model(source)
            if is_int8:
                model = _quantize(model, conversion.calibration)
            for name, value in properties_of(engine).items():
                model.set_rt_info(value, ["deepseek", name])
            is_half = conversion.precision in ("bf16", "fp16")
            openvino.save_model(model, path, compress_to_fp16=is_half)

    def files_of(self, path: Path) -> tuple[Path, ...]:
        """Return graph and weights."""
        return path, path.with_suffix(".bin")

    def open(self, path: Path, execution: Execution) -> nn.Module:
        """Return the model, compiled for this processor."""
        openvino = import_extra("openvino", "deploy")
        options = {
            "INFERENCE_PRECISION_HINT": HINTS[execution.precision],
            "INFERENCE_NUM_THREADS": execution.threads or torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned, the threads of several processes would meet on the first cores.
            "ENABLE_CPU_PINNING": False,
        }
        with opening(path, self.name):
            core = openvino.Core()
            graph, weights = self.files_of(path)
            compiled = core.compile_model(core.read_model(graph, weights), "CPU", options)
            request = compiled.create_infer_request()
        lock = threading.Lock()  # a request serves one call at a time

        def call(inputs: Tensor) -> Tensor:
            with lock:
                found = request.infer([inputs.numpy()], share_inputs=True, share_outputs=False)
            return torch.from_numpy(found[0])

        return Opened(call)


def _with_repeated_keys(graph: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Write attention out where queries share their keys, which OpenVINO does not know."""
    has_groups = has_node(graph, lambda node: bool(node.kwargs.get("enable_gqa")))
    return graph.run_decompositions() if has_groups else graph


def _quantize(model, calibration: Sequence[Tensor]):
    nncf = import_extra("nncf", "deploy")
    kinds = [node.get_type_name() for node in model.get_ops()]
    is_transformer = kinds.count("MatMul") > sum("Convolution" in kind for kind in kinds)
    return nncf.quantize(
        model,
        nncf.Dataset([batch.contiguous().numpy() for batch in calibration]),
        model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
    )
