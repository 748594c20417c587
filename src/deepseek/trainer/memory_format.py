"""Pictures and the weights that convolve them as NHWC, as kernels of convolutions take them."""

import torch
from torch import nn

from deepseek.models import ModelEngine
from deepseek.models.quantized import is_quantised


def prefers_channels_last(module: nn.Module) -> bool:
    """Return whether most of the weights are those of convolutions over images."""
    conv = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))
    return 2 * conv > sum(p.numel() for p in module.parameters())


def put_channels_last(module: nn.Module) -> None:
    """Put all weights and buffers of four dims into this order, where they are."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def put_in_order(engine: ModelEngine, device: torch.device) -> bool:
    """Put a model that is evaluated alone into the order that a run has by itself on a GPU.

    Args:
        engine: on the device. On a CPU, and where layers were quantised, it stays as it is.
        device: that it computes on.

    Returns:
        Whether pictures are to be channels-last.
    """
    if device.type != "cuda" or is_quantised(engine.changes):
        return False
    if not prefers_channels_last(engine.module):
        return False
    put_channels_last(engine)
    return True
