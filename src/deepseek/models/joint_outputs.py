"""The outputs of several tasks as one tensor, and back: what runtimes and services take.

They stand side by side in the last dim, in the order of the data spec: as outputs of the heads, or
as what is said of a sample, probabilities of a task of classes and the numbers of another.

Shapes: B batch, T tokens, K outputs of all heads.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deepseek.datasets.spec import DataSpec
from deepseek.errors import ConfigError
from deepseek.models.multi_head import head_of


def join_outputs(outputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Return the outputs of a model as one tensor, (B, K) or (B, T, K).

    Raises:
        ConfigError: some are of samples, others of tokens.
    """
    if not isinstance(outputs, Mapping):
        return outputs
    if len({each.ndim for each in outputs.values()}) != 1:
        shapes = ", ".join(f"{name} {list(each.shape)}" for name, each in outputs.items())
        raise ConfigError(
            f"some tasks answer for a sample, others for each token, which make no one tensor:"
            f" {shapes}",
            fix="use the model file itself, or train the tasks of tokens apart",
        )
    return torch.cat(list(outputs.values()), -1)


def divide(joined: Tensor, spec: DataSpec) -> dict[str, Tensor]:
    """Return the part of each task, of outputs (..., K) that stand side by side."""
    return dict(zip(spec.tasks, joined.split(widths_of(spec), -1), strict=True))


def widths_of(spec: DataSpec) -> list[int]:
    """Return the number of outputs of each task."""
    return [head_of(own)["outputs"] for own in spec.tasks.values()]


def rows_of(outputs: Tensor | Mapping[str, Tensor], spec: DataSpec) -> Tensor:
    """Return what outputs say, (B, ..., K) float32: probabilities where there are classes.

    Beside tasks of tokens, what another says of a sample is repeated for each of its tokens.

    Args:
        outputs: of a model.
        spec: that it was trained on.
    """
    if isinstance(outputs, Mapping):
        parts = {name: rows_of(outputs[name], own) for name, own in spec.tasks.items()}
        return join_outputs(_beside_tokens(parts))
    return outputs.float() if is_number(spec) else outputs.float().softmax(-1)


def _beside_tokens(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    tokens = [each.shape[1] for each in parts.values() if each.ndim == 3]
    if not tokens:
        return parts
    return {
        name: each if each.ndim == 3 else each[:, None].expand(-1, tokens[0], -1)
        for name, each in parts.items()
    }


def is_of_tokens(spec: DataSpec) -> bool:
    """Return whether a task has a class for each token of a text."""
    return spec.task == "token_classification"


def is_number(spec: DataSpec) -> bool:
    """Return whether what is said of a sample is numbers, and not classes."""
    return spec.task in ("regression", "sequence_regression")


class Divided(nn.Module):
    """A converted model of several tasks: its one output, by the names of the tasks.

    Args:
        program: from inputs to outputs (B, ..., K).
        spec: of the model.
    """

    def __init__(self, program: nn.Module, spec: DataSpec) -> None:
        super().__init__()
        self.program = program
        self._spec = spec

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs of each task."""
        return divide(self.program(inputs), self._spec)
