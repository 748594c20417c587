"""The bytes of a rank that stay from step to step."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer


def held_bytes(trainer: "Trainer") -> dict[str, int]:
    """Return the bytes of this rank that stay from step to step, by category."""
    step = trainer.assembly.step
    weights = sum(weight.local.nbytes for weight in step.parallel.weights.weights)
    buffers = sum(buffer.nbytes for buffer in step.parallel.buffers().values())
    values = [value for each in step.optimizer.state.values() for value in each.values()]
    state = [value for value in values if isinstance(value, Tensor)]
    return {
        "weights": weights + buffers,
        "average": weights if step.ema is not None else 0,
        "optimizer": sum(v.nbytes for v in state if v.device.type == trainer.device.type),
    }


def bytes_beside(trainer: "Trainer") -> int:
    """Return the bytes that torch has given out on a GPU to something else than `held_bytes`.

    Data that lie there, what was made before the run, and cuBLAS's workspaces. It has one for every
    thread that multiplies; how large they are depends on the GPU, on `CUBLAS_WORKSPACE_CONFIG` and
    on the version of torch. So they are taken first, and counted with the rest.
    """
    take_workspaces(trainer.device)
    given_out = torch.cuda.memory_allocated(trainer.device)
    return max(0, given_out - sum(held_bytes(trainer).values()))


def take_workspaces(device: torch.device) -> None:
    """Multiply once in the thread of forward passes and once in that of backward passes."""
    with torch.enable_grad():
        weight = torch.ones(16, 16, device=device, requires_grad=True)
        F.linear(weight, weight, torch.ones(16, device=device)).sum().backward()
