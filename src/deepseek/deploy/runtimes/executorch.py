"""ExecuTorch with XNNPACK: `.pte`, for phones and boards.

A program of it is planned for one size: one sample. A batch is computed one by one. `int8` is
XNNPACK's own: static, from calibration data, where there are convolutions; of linears alone the
inputs are scaled as they come.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from deepseek.deploy.runtimes.foreign import (
    check_calibration,
    converting,
    find_missing_of,
    opening,
)
from deepseek.deploy.runtimes.opened import Opened
from deepseek.deploy.runtimes.program import has_node, trace
from deepseek.deploy.runtimes.runtime import Conversion, Execution, Runtime
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.quantized import is_quantised
from deepseek.registry import import_extra

_STDERR = threading.Lock()
"""Held while stderr is away: a second one would save what the first put there, and leave it."""


class ExecuTorch(Runtime):
    """ExecuTorch on the CPU."""

    name = "executorch"
    suffix = ".pte"
    precisions = ("fp32", "int8")
    runs_code = False
    has_open_dims = False

    def find_missing(self) -> str | None:
        """Return how to install what is missing."""
        return find_missing_of("edge", "executorch")

    def convert(
        self, engine: ModelEngine, inputs: Tensor, path: Path, conversion: Conversion
    ) -> None:
        """Write the program of one sample."""
        if is_quantised(engine.changes):
            raise ConfigError(
                "ExecuTorch quantises by itself, and does not take what `quantize` has made",
                fix="convert the model that it was made of, with precision='int8'",
            )
        sample = inputs[:1].contiguous()  # strides become a part of the program
        graph = trace(engine, sample, is_open=False)
        if has_node(graph, lambda node: "conv3d" in str(node.target)):
            raise ConfigError(
                f"{engine.architecture} has convolutions of volumes, and ExecuTorch has none",
                fix="use another runtime for this model",
            )
        with converting(engine, self.name):
            exir = import_extra("executorch.exir", "edge")
            xnnpack = import_extra(
                "executorch.backends.xnnpack.partition.xnnpack_partitioner", "edge"
            )
            if conversion.precision == "int8":
                graph = _quantize(graph, sample, conversion)
            lowered = exir.to_edge_transform_and_lower(
                graph, partitioner=[xnnpack.XnnpackPartitioner()]
            )
            path.write_bytes(lowered.to_executorch().buffer)

    def open(self, path: Path, execution: Execution) -> nn.Module:
        """Return the program; its threads are those of the process, not of a program."""
        with opening(path, self.name):
            runtime = import_extra("executorch.runtime", "edge")
            _set_threads(execution.threads or torch.get_num_threads())
            program = runtime.Runtime.get().load_program(
                path, verification=runtime.Verification.InternalConsistency
            )
            method = program.load_method("forward")
            shape = tuple(method.metadata.input_tensor_meta(0).sizes())
        lock = threading.Lock()  # a method has one memory plan

        def call(inputs: Tensor) -> Tensor:
            if inputs.shape[1:] != shape[1:]:
                raise ConfigError(
                    f"samples of shape {tuple(inputs.shape[1:])}, the program takes {shape[1:]}",
                    fix="pad or cut them, or export the model for that shape",
                )
            with lock:
                return torch.cat([method.execute([row])[0].clone() for row in inputs.split(1)])

        return Opened(call)


def _quantize(
    graph: torch.export.ExportedProgram, sample: Tensor, conversion: Conversion
) -> torch.export.ExportedProgram:
    check_calibration(conversion)
    xnnpack = import_extra("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", "edge")
    pt2e = import_extra("torchao.quantization.pt2e.quantize_pt2e", "deploy")
    convolves = has_node(graph, lambda node: "conv" in str(node.target))
    settings = xnnpack.get_symmetric_quantization_config(
        is_per_channel=True, is_dynamic=not convolves
    )
    quantizer = xnnpack.XNNPACKQuantizer().set_global(settings)
    prepared = pt2e.prepare_pt2e(graph.module(check_guards=False), quantizer)
    for row in torch.cat(list(conversion.calibration)).contiguous().split(1):
        prepared(row)
    return torch.export.export(pt2e.convert_pt2e(prepared), (sample,))


def _set_threads(count: int) -> None:
    pool = import_extra("executorch.extension.pybindings.portable_lib", "edge")
    with _without_stderr():  # C++ tells there which files of a phone it does not find
        if pool._threadpool_get_thread_count() != count:
            pool._unsafe_reset_threadpool(count)


@contextmanager
def _without_stderr() -> Iterator[None]:
    with _STDERR:
        sys.stderr.flush()
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)
