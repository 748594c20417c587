"""What a runtime is: it turns an engine into a file, and such a file into something that computes.

The program in a file takes what the spec of the engine says (uint8 pictures, tokens) and returns
what the engine returns, in float32: normalisation is inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from deepseek.models import ModelEngine


@dataclass(frozen=True)
class Conversion:
    """How an engine is converted.

    Attributes:
        precision: `fp32`, `bf16`, `fp16`; `int8` where the runtime quantises by itself. An engine
            that `quantize` returned is converted with what it has: `fp32` here.
        calibration: batches as the engine takes them, for `int8`.
        opset: of ONNX; `None`: that of the exporter.
    """

    precision: str = "fp32"
    calibration: Sequence[Tensor] = ()
    opset: int | None = None


@dataclass(frozen=True)
class Execution:
    """How a file is run.

    Attributes:
        threads: of one batch; `None`: as many as the process may use.
        precision: that it was converted to, for runtimes that choose when they open a file.
    """

    threads: int | None = None
    precision: str = "fp32"


class Runtime(Protocol):
    """One way to run a model.

    Attributes:
        name: as users write it.
        suffix: of its files.
        precisions: what `Conversion.precision` may be.
        runs_code: whether opening a file can run code that is in it.
        has_open_dims: whether the batch size, and for tokens the length, stay open inside a file;
            else the module of `open` takes batches of any size all the same.
        device: what it computes on, `cpu` or `cuda`.
    """

    name: str
    suffix: str
    precisions: tuple[str, ...]
    runs_code: bool
    has_open_dims: bool
    device: str = "cpu"

    def find_missing(self) -> str | None:
        """Return what is to be installed, as a command, or `None` where all is there."""
        return None

    def convert(
        self, engine: ModelEngine, inputs: Tensor, path: Path, conversion: Conversion
    ) -> None:
        """Write the file, and nothing beside it but what `files_of` names.

        Args:
            engine: with its head; in evaluation.
            inputs: two samples or more of what it takes, as its spec says; the batch size, and for
                tokens the length, stay open where the runtime can do that.
            path: ends with `suffix`.
            conversion: how.

        Raises:
            ConfigError: this model cannot be converted; says why.
        """
        ...

    def files_of(self, path: Path) -> tuple[Path, ...]:
        """Return the files that belong together, `path` first."""
        return (path,)

    def open(self, path: Path, execution: Execution) -> nn.Module:
        """Return a module from inputs (B, ...) to outputs, float32.

        Raises:
            CheckpointError: the file is damaged, or of another machine.
        """
        ...
