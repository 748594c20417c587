"""A model with the shapes of its weights, and no numbers: for steps on paper."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def mirror(module: M, device: str, mode: AbstractContextManager | None = None) -> M:
    """Return the model with weights that are empty; the model itself stays as it is.

    Args:
        module: on any device, `meta` among them.
        device: of the weights.
        mode: in which they are made, such as a `FakeTensorMode`; shared ones stay shared.
    """

    def twin(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    twins: dict[int, Any] = {}
    with mode or nullcontext():
        for parameter in module.parameters():
            wanted = parameter.requires_grad
            twins[id(parameter)] = nn.Parameter(twin(parameter), requires_grad=wanted)
        for buffer in module.buffers():
            twins[id(buffer)] = twin(buffer)
    return copy.deepcopy(module, twins)
