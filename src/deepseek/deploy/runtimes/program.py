"""An engine as one program: what comes before its module, the module, and float32 outputs.

The batch size of a program stays open; so does the number of tokens of a model of text.
"""

import re
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.classifier import Classifier
from deepseek.models.joint_outputs import join_outputs
from deepseek.models.multi_head import trunk_config

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Program(nn.Module):
    """An engine's module with what comes before it, in the dtype of a precision.

    Args:
        engine: in evaluation.
        precision: a name of `DTYPES`.
    """

    def __init__(self, engine: ModelEngine, precision: str = "fp32") -> None:
        super().__init__()
        self.module = engine.module
        self._prepare = engine.prepare
        self._dtype = DTYPES[precision]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs (B, ...), float32; those of several tasks side by side."""
        if self._dtype is torch.float32:
            return join_outputs(self.module(self._prepare(inputs))).float()
        with torch.autocast(inputs.device.type, dtype=self._dtype):
            return join_outputs(self.module(self._prepare(inputs))).float()


def open_dims(engine: ModelEngine) -> tuple[str, ...]:
    """Return the dims of an engine's inputs that may be of any size."""
    module = engine.module
    takes_tokens = isinstance(module, Classifier) and module.input_shape == (None,)
    return ("batch", "length") if takes_tokens else ("batch",)


def trace(
    engine: ModelEngine, inputs: Tensor, precision: str = "fp32", *, is_open: bool = True
) -> torch.export.ExportedProgram:
    """Return an engine as a graph.

    Args:
        engine: with its head, in evaluation.
        inputs: two samples or more.
        precision: a name of `DTYPES`.
        is_open: whether `open_dims` stay open; else all sizes are those of `inputs`.

    Raises:
        ConfigError: torch.export cannot follow the model; says why.
    """
    program = Program(engine, precision).eval()
    shapes = ({i: _dim(name, engine) for i, name in enumerate(open_dims(engine))},)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.export's own
            graph = torch.export.export(
                program, (inputs,), dynamic_shapes=shapes if is_open else None
            )
    except Exception as error:  # whatever tracing a user's Python raises
        raise ConfigError(
            f"{engine.architecture} cannot be exported"
            f"{' for any batch size' if is_open else ''}: {in_brief(error)}",
            fix="let its forward not depend on the values of tensors or on the batch size",
        ) from error
    _check_dtypes(engine, graph)
    return graph


def has_node(graph: torch.export.ExportedProgram, fits: Callable[[torch.fx.Node], bool]) -> bool:
    """Return whether a graph, or one inside it, has such a node."""
    parts = (
        part for part in graph.graph_module.modules() if isinstance(part, torch.fx.GraphModule)
    )
    return any(fits(node) for part in parts for node in part.graph.nodes)


def in_brief(error: Exception) -> str:
    """Return the beginning of what an error says, in one line."""
    return " ".join(_COLOUR.sub("", str(error)).split())[:300] or repr(error)


def _dim(name: str, engine: ModelEngine):
    if name == "length":
        longest = trunk_config(engine.config)["context_length"]
        return torch.export.Dim(name, min=1, max=longest)
    return torch.export.Dim(name, min=1)


def _check_dtypes(engine: ModelEngine, graph: torch.export.ExportedProgram) -> None:
    if torch.float64 in {tensor.dtype for tensor in engine.state_dict().values()}:
        return
    held = {**graph.state_dict, **graph.constants}
    wide = [n for n, t in held.items() if isinstance(t, Tensor) and t.dtype is torch.float64]
    if wide:
        raise ConfigError(
            f"the program of {engine.architecture} holds {', '.join(wide[:4])} in float64, the"
            " model does not",
            fix="make the constants of the model float32",
        )
