"""What a model costs: FLOPs of a sample, parameters, bytes, and time on this machine."""

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deepseek.models.eval_mode import evaluating

BATCH_SIZES = (1, 32)
MIN_ROUNDS = 5
MAX_ROUNDS = 50
BUDGET_S = 3.0
"""Time that the rounds of one batch size may take, above `MIN_ROUNDS`."""


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        flops: of the forward pass of one sample, a multiply-add as two.
        num_parameters: shared ones once.
        num_bytes: of the state that a model file holds.
        latencies_ms: batch size -> median time of a forward pass on this machine; empty where it
            was not measured.
    """

    flops: int
    num_parameters: int
    num_bytes: int
    latencies_ms: dict[int, float]


def skeleton_of(module: nn.Module) -> nn.Module:
    """Return a copy on the meta device, which takes no memory; weights that were shared still are.

    Args:
        module: not changed; its weights are not copied.
    """
    memo: dict[int, object] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = tensor.detach().to("meta")
        is_weight = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
    return copy.deepcopy(module, memo)


def count(skeleton: nn.Module, inputs: Tensor) -> tuple[int, int]:
    """Return the FLOPs of one sample and the parameters; nothing is computed.

    Args:
        skeleton: on the meta device.
        inputs: (B, ...), on any device; of the first sample the shape is taken.
    """
    with evaluating(skeleton), torch.no_grad(), FlopCounterMode(display=False) as counter:
        skeleton(inputs[:1].to("meta"))
    return counter.get_total_flops(), sum(p.numel() for p in skeleton.parameters())


def costs(modules: Sequence[nn.Module], inputs: Tensor, *, times: bool) -> list[Cost]:
    """Return what modules of the same inputs cost.

    Args:
        modules: on one device.
        inputs: (B, ...), on that device.
        times: measure latencies, of all modules in turn, so that what else the machine does
            meets them alike.
    """
    found = []
    latencies: list[dict[int, float]] = [{} for _ in modules]
    for size in BATCH_SIZES if times else ():
        batch = inputs[torch.arange(size, device=inputs.device) % len(inputs)]
        for each, median_s in zip(latencies, _median_times(modules, batch), strict=True):
            each[size] = 1e3 * median_s
    for module, measured in zip(modules, latencies, strict=True):
        flops, num_parameters = count(skeleton_of(module), inputs)
        num_bytes = sum(tensor.nbytes for tensor in module.state_dict().values())
        found.append(Cost(flops, num_parameters, num_bytes, measured))
    return found


def _median_times(modules: Sequence[nn.Module], batch: Tensor) -> list[float]:
    times: list[list[float]] = [[] for _ in modules]
    for module in modules:
        _time(module, batch)  # the first call of a size prepares kernels
    began = perf_counter()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and perf_counter() - began > BUDGET_S:
            break
        for module, measured in zip(modules, times, strict=True):
            measured.append(_time(module, batch))
    return [statistics.median(measured) for measured in times]


def _time(module: nn.Module, batch: Tensor) -> float:
    with evaluating(module), torch.inference_mode():
        began = perf_counter()
        module(batch)
        if batch.is_cuda:
            torch.cuda.synchronize(batch.device)
        return perf_counter() - began
