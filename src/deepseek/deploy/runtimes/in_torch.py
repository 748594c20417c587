"""torch itself: the model file as it is, or compiled when it is opened."""

from pathlib import Path

import torch
from torch import Tensor, nn

from deepseek.deploy.runtimes.runtime import Conversion, Execution
from deepseek.models import ModelEngine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Eager:
    """The model file, in the dtype it was converted to."""

    name = "eager"
    suffix = ".bin"
    precisions = ("fp32", "bf16", "fp16")
    runs_code = False

    def find_missing(self) -> str | None:
        """Return `None`: torch is there."""
        return None

    def convert(
        self, engine: ModelEngine, inputs: Tensor, path: Path, conversion: Conversion
    ) -> None:
        """Write a model file."""
        del inputs
        engine.save(path)

    def files_of(self, path: Path) -> tuple[Path, ...]:
        """Return the model file."""
        return (path,)

    def open(self, path: Path, execution: Execution) -> nn.Module:
        """Return the model, in evaluation."""
        return _InTorch(ModelEngine.load(path), DTYPES[execution.precision])


class Compiled(Eager):
    """The model file, compiled by Inductor with frozen weights when it is first called."""

    name = "compiled"

    def open(self, path: Path, execution: Execution) -> nn.Module:
        """Return the model, in evaluation; its first calls compile."""
        module = _InTorch(ModelEngine.load(path), DTYPES[execution.precision])
        module.compile(dynamic=False, options={"freezing": True})
        return module


class _InTorch(nn.Module):
    def __init__(self, engine: ModelEngine, dtype: torch.dtype) -> None:
        super().__init__()
        self.engine = engine.eval().requires_grad_(False)
        self.dtype = dtype

    def forward(self, inputs: Tensor) -> Tensor:
        kind = self.engine.device.type
        is_lower = self.dtype is not torch.float32
        with torch.no_grad(), torch.autocast(kind, dtype=self.dtype, enabled=is_lower):
            return self.engine(inputs).float()
