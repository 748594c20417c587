"""What a step will cost, before it is taken: FLOPs and bytes, counted on the meta device.

No weight is copied and no random number drawn: the model is mirrored onto `meta`, where a forward
pass has shapes only.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from deepseek.memory.mirror import mirror


@dataclass(frozen=True)
class StepEstimate:
    """Cost of one forward pass of one sample, and of the state that training keeps.

    `forward_flops` counts a multiply-add as two; `num_ops` are torch operators of the forward
    pass, whatever the batch. Bytes are of fp32.
    """

    num_parameters: int
    num_trainable: int
    forward_flops: float
    activation_bytes: float
    num_ops: int

    def step_flops(self, batch_size: int) -> float:
        """Forward and backward of a batch: the backward pass does twice the forward's work."""
        return 3 * self.forward_flops * batch_size


def estimate_step(
    module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> StepEstimate | None:
    """Estimate one sample's forward pass; `None` for a model that cannot run on shapes alone.

    Args:
        module: the model, which is left as it is.
        input_shape: of one sample, without the batch dim.
        dtype: of the inputs, as the module sees them.
    """
    parameters = list(module.parameters())
    try:
        on_meta = mirror(module, "meta").train()
        # two samples: a batch norm refuses to train on one value per channel
        inputs = torch.empty((2, *input_shape), dtype=dtype, device="meta")
        saved: dict[int, int] = {}
        weights = {id(p) for p in on_meta.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in weights:
                saved[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
                held.append(tensor)
            return tensor

        held: list[torch.Tensor] = []  # so that ids stay unique
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, FlopCounterMode(display=False) as flops, _OpCounter() as ops:
            on_meta(inputs)
    except Exception:
        # any model may do anything in its forward; the estimate is a courtesy
        return None
    return StepEstimate(
        num_parameters=sum(p.numel() for p in parameters),
        num_trainable=sum(p.numel() for p in parameters if p.requires_grad),
        forward_flops=flops.get_total_flops() / 2,
        activation_bytes=sum(saved.values()) / 2,
        num_ops=ops.count,
    )


class _OpCounter(TorchDispatchMode):
    """Counts the operators that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))
