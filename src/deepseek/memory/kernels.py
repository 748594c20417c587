"""What kernels of a CPU take for themselves while they run, beside what they are given and make.

Convolutions are taken to be oneDNN's (with one thread torch does small ones itself, and needs
less). Most of it is tensors put in another order; for two kinds, buffers of the
gradient of weights. Read from the allocator's events of single convolutions (torch 2.14, 1 and 2
threads, batches of 1 to 16, fp32 and bf16); `benchmarks/footprints.py` holds whole models against
it. Matrix products, attention and norms take next to nothing.
"""

import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PATCH_AREA = 256
"""Pixels of a kernel (16 x 16) from which on each thread sums gradients of weights by itself."""
PATCH_COPIES = {torch.float32: 4.25, torch.bfloat16: 6.1}
"""Weights, in their own dtype, that such a thread has."""
TILE_CHANNELS = 16
"""Channels that buffers are filled up to where bf16 has matrix units (AMX)."""
TILE_WIDTH = 32
DEPTHWISE_COPIES = 256
LANES = 64


def _forward(tensors: Sequence[Tensor]) -> int:
    inputs, weight = tensors[:2]
    return inputs.nbytes + weight.nbytes


def _backward(tensors: Sequence[Tensor]) -> int:
    grad, inputs, weight = tensors[:3]
    in_order = grad.nbytes + inputs.nbytes + 2 * weight.nbytes
    if inputs.ndim == 5 and _has_tiles(weight):
        in_order += torch.get_num_threads() * _turned_bytes(grad, inputs, weight)
    return max(in_order, _weight_gradients(inputs, weight))


def _has_tiles(weight: Tensor) -> bool:
    amx = torch.cpu.get_capabilities().get("amx_bf16", False)
    return weight.dtype is torch.bfloat16 and bool(amx)


def _turned_bytes(grad: Tensor, inputs: Tensor, weight: Tensor) -> int:
    """Bytes of a volume and its gradient, rows across channels, as a thread turns them for tiles.

    A block of channels of each; of some sizes it takes up to twice as many.
    """
    beyond = weight.shape[-1] - 1
    in_width = inputs.shape[-1] + beyond
    out_width = -(-(grad.shape[-1] + beyond) // TILE_WIDTH) * TILE_WIDTH
    rows = (math.prod(tensor.shape[2:-1]) for tensor in (inputs, grad))
    return 2 * TILE_CHANNELS * sum(map(operator.mul, rows, (in_width, out_width)))


def _weight_gradients(inputs: Tensor, weight: Tensor) -> int:
    """Bytes of the buffers that gradients of weights are summed in."""
    area = weight[0, 0].numel()
    num_channels, is_depthwise = inputs.shape[1], weight.shape[1] == 1 < inputs.shape[1]
    if area >= PATCH_AREA and not is_depthwise:
        threads = min(len(inputs), torch.get_num_threads())
        if _has_tiles(weight):
            # in bf16, and a sum in fp32 for each thread and for all
            filled = -(-num_channels // TILE_CHANNELS) * TILE_CHANNELS * weight[:, 0].numel()
            return filled * (2 + 4 * (threads + 1))
        return int(threads * PATCH_COPIES.get(weight.dtype, 4.25) * weight.nbytes)
    in_rows = inputs.ndim == 4 and not inputs.is_contiguous()
    if is_depthwise and in_rows and area > 9:
        copies = DEPTHWISE_COPIES * weight.numel()
        if weight.dtype is torch.float32:
            return 4 * copies
        return 2 * copies + 4 * copies * -(-num_channels // LANES) * LANES // num_channels
    return 0


KERNELS: dict[object, Callable[[Sequence[Tensor]], int]] = {
    torch.ops.aten.convolution: _forward,
    torch.ops.aten.convolution_backward: _backward,
}
"""Operators -> bytes, of their tensors in order."""
