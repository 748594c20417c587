"""The bytes of a rank that stay from step to step."""

from typing import TYPE_CHECKING

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
