"""torch itself: the model file as it is, or compiled when it is opened."""

from pathlib import Path

import torch
from torch import Tensor, nn

from deepseek.deploy.runtimes.integer_kernels import register_for
from deepseek.deploy.runtimes.opened import torch_threads
from deepseek.deploy.runtimes.program import DTYPES, Program
from deepseek.deploy.runtimes.runtime import Conversion, Execution, Runtime
from deepseek.models import ModelEngine


class Eager(Runtime):
    """The model file, in the dtype it was converted to."""

    name = "eager"
    suffix = ".bin"
    precisions = tuple(DTYPES)
    runs_code = False
    has_open_dims = True

    def convert(
        self, engine: ModelEngine, inputs: Tensor, path: Path, conversion: Conversion
    ) -> None:
        """Write a model file."""
        del inputs
        engine.save(path)

    def open(self, path: Path, execution: Execution) -> nn.Module:
        """Return the model, in evaluation."""
        return _InTorch(ModelEngine.load(path), execution)


class Compiled(Eager):
    """The model file, compiled by Inductor with frozen weights when it is first called."""

    name = "compiled"

    def open(self, path: Path, execution: Execution) -> nn.Module:
        """Return the model, in evaluation; its first calls compile."""
        engine = ModelEngine.load(path)
        register_for(engine)
        return _Frozen(engine, execution)


class _InTorch(nn.Module):
    def __init__(self, engine: ModelEngine, execution: Execution) -> None:
        super().__init__()
        self.program = Program(engine.eval().requires_grad_(False), execution.precision)
        self._threads = execution.threads

    def forward(self, inputs: Tensor) -> Tensor:
        # The precision is the program's own, not that of the caller's autocast.
        autocast = torch.autocast(inputs.device.type, enabled=False)
        with torch.no_grad(), autocast, torch_threads(self._threads):
            return self.program(inputs)


class _Frozen(_InTorch):
    """Compiled for each shape of inputs, with weights that are constants of the code."""

    def __init__(self, engine: ModelEngine, execution: Execution) -> None:
        super().__init__(engine, execution)
        self._seen: set[tuple] = set()
        self.program.compile(dynamic=False)

    def forward(self, inputs: Tensor) -> Tensor:
        key = (inputs.shape, inputs.dtype, inputs.stride())
        if key in self._seen:
            return super().forward(inputs)
        # Not as an option of `compile`: by then it is settled that weights are arguments.
        from torch._inductor import config  # two seconds, for those who compile

        with config.patch(freezing=True):
            outputs = super().forward(inputs)
        self._seen.add(key)
        return outputs
