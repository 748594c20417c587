"""Programs of torch: the graph of torch.export as it is, or compiled by AOTInductor.

Both kinds of file can run code when they are opened: the first holds expressions that are
evaluated, the second a shared library.
"""

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from deepseek.deploy.machine import processor_flags
from deepseek.deploy.runtimes.foreign import converting, opening
from deepseek.deploy.runtimes.integer_kernels import register_for
from deepseek.deploy.runtimes.opened import Opened
from deepseek.deploy.runtimes.program import DTYPES, trace
from deepseek.deploy.runtimes.runtime import Conversion, Execution, Runtime
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import ModelEngine

_FLAGS = {"avx2": "avx2", "avx512": "avx512f", "avx512_vnni": "avx512_vnni", "amx_tile": "amx_tile"}
"""Inductor's words for instructions -> those of /proc/cpuinfo."""


class Exported(Runtime):
    """The graph of torch.export: it runs without the code of the model, no faster."""

    name = "exported"
    suffix = ".pt2"
    precisions = tuple(DTYPES)
    runs_code = True
    has_open_dims = True

    def convert(
        self, engine: ModelEngine, inputs: Tensor, path: Path, conversion: Conversion
    ) -> None:
        """Write the graph."""
        graph = trace(engine, inputs, conversion.precision)
        with converting(engine, self.name):
            torch.export.save(graph, path)

    def open(self, path: Path, execution: Execution) -> nn.Module:
        """Return the graph as a module."""
        with opening(path, self.name):
            return Opened(torch.export.load(path).module(), execution.threads)


class AheadOfTime(Exported):
    """The graph compiled to a library by Inductor, its weights frozen into it.

    Made for the instructions of the processor that it is compiled on. Needs a C++ compiler to
    convert, none to open.
    """

    name = "aoti"
    suffix = ".aoti.pt2"

    def convert(
        self, engine: ModelEngine, inputs: Tensor, path: Path, conversion: Conversion
    ) -> None:
        """Compile the graph and write the package."""
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise ConfigError(
                f"aoti compiles C++, and there is no {compiler}",
                fix="apt-get install g++, or name another compiler: CXX=clang++",
            )
        graph = trace(engine, inputs, conversion.precision)
        register_for(engine)
        # Without dynamic_threads the thread count of this process would be compiled in.
        options = {"freezing": True, "cpp.dynamic_threads": True}
        with converting(engine, self.name), torch.no_grad():  # with gradients, nothing is frozen
            torch._inductor.aoti_compile_and_package(
                graph, package_path=str(path), inductor_configs=options
            )

    def open(self, path: Path, execution: Execution) -> nn.Module:
        """Return the compiled program; its instructions must be this processor's."""
        with opening(path, self.name):
            package = torch._inductor.aoti_load_package(str(path))
            _check_instructions(path, package.get_metadata().get("AOTI_CPU_ISA", ""))
        return Opened(package, execution.threads)


def _check_instructions(path: Path, compiled_for: str) -> None:
    """Refuse a library whose instructions this processor would die of."""
    here = processor_flags()
    words = compiled_for.lower().split()
    missing = [word for word in words if word in _FLAGS and _FLAGS[word] not in here]
    if here and missing:
        raise CheckpointError(
            f"{path} was compiled for {compiled_for}; this processor has no {', '.join(missing)}",
            fix="export the model again, here",
        )
