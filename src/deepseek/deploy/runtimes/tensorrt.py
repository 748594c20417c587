"""NVIDIA's TensorRT, through ONNX Runtime: the file is ONNX, the engine is built when it is opened.

Building takes from seconds to minutes, once more for each larger batch: after the first calls of
each size it is done. `int8` is static from calibration data, symmetric, as TensorRT wants it.
"""

import ctypes.util
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from deepseek.deploy.runtimes.onnx_runtime import OnnxRuntime, quantize_file
from deepseek.deploy.runtimes.runtime import Conversion, Execution
from deepseek.errors import CheckpointError
from deepseek.models import ModelEngine
from deepseek.registry import import_extra

PROVIDER, REST = "TensorrtExecutionProvider", ("CUDAExecutionProvider", "CPUExecutionProvider")
"""What computes, and what does with operators that TensorRT does not have."""
NEEDS = "pip install onnxruntime-gpu tensorrt, on a machine with an NVIDIA GPU"


class TensorRt(OnnxRuntime):
    """TensorRT on an NVIDIA GPU."""

    name = "tensorrt"
    suffix = ".trt.onnx"
    precisions = ("fp32", "bf16", "fp16", "int8")
    device = "cuda"

    def find_missing(self) -> str | None:
        """Return what is missing: the GPU, TensorRT, or the ONNX Runtime that knows it."""
        if (command := super().find_missing()) is not None:
            return command
        # listed where it was compiled in, whether or not there is a GPU and TensorRT
        known = import_extra("onnxruntime", "deploy").get_available_providers()
        is_here = PROVIDER in known and torch.cuda.is_available() and _has_libraries()
        return None if is_here else NEEDS

    def convert(
        self, engine: ModelEngine, inputs: Tensor, path: Path, conversion: Conversion
    ) -> None:
        """Write ONNX: of half precisions the engine that is built from it makes use."""
        is_half = conversion.precision in ("bf16", "fp16")
        own = replace(conversion, precision="fp32") if is_half else conversion
        super().convert(engine, inputs, path, own)

    def _quantize(self, source: Path, target: Path, calibration: Sequence[Tensor]) -> None:
        quantize_file(source, target, calibration, is_symmetric=True)

    def _providers(self, execution: Execution) -> list:
        if importlib.util.find_spec("tensorrt"):
            importlib.import_module("tensorrt")  # brings the libraries that ONNX Runtime looks for
        option = (
            {} if execution.precision == "fp32" else {f"trt_{execution.precision}_enable": "True"}
        )
        return [(PROVIDER, option), *REST]

    def _check_session(self, path: Path, session) -> None:
        """Where TensorRT does not load, ONNX Runtime goes on without it and says nothing."""
        if session.get_providers()[0] != PROVIDER:
            raise CheckpointError(
                f"{path} cannot be opened by {self.name}: ONNX Runtime has chosen"
                f" {session.get_providers()[0]} instead",
                fix="install the TensorRT that this ONNX Runtime was built for",
            )


def _has_libraries() -> bool:
    return bool(importlib.util.find_spec("tensorrt") or ctypes.util.find_library("nvinfer"))
