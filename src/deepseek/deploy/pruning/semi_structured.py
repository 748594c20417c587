"""Two zeros in every four weights, the pattern that NVIDIA's sparse tensor cores compute faster.

Paper: Mishra et al. 2021, arXiv 2104.08378: the two smallest of each four go, then the model is
trained on with the mask as it is. The four lie side by side along what a product sums over: the
inputs of a linear, the channels of a convolution.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deepseek.deploy.pruning.masks import WeightMasks, prunable_weights
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.trainer import Callback

if TYPE_CHECKING:
    from deepseek.trainer.step_values import StepResult
    from deepseek.trainer.trainer import Trainer

PATTERN = "2:4"
MIN_CAPABILITY = (8, 0)
"""Compute capability of a GPU with sparse tensor cores."""
SPARSE_DTYPES = (torch.float16, torch.bfloat16)
MIN_DIM = 64
"""Rows and columns of a sparse weight come in multiples of it (torch.sparse, 16-bit)."""


@torch.no_grad()
def zero_two_of_four(engine: ModelEngine, skip: Collection[str] = ()) -> tuple[str, ...]:
    """Zero the two smallest of every four weights, in place.

    Args:
        engine: changed. Its head, and layers whose width four does not divide, stay as they are.
        skip: names of modules, or beginnings of them, that stay too.

    Returns:
        Names of the layers that have the pattern.

    Raises:
        ConfigError: there is no such layer.
    """
    weights = prunable_weights(engine.module, (*skip, *engine.hints.head[-1:]))
    chosen = {name: weight for name, weight in weights.items() if weight.shape[1] % 4 == 0}
    if not chosen:
        raise ConfigError(
            f"{engine.architecture} has no linear or convolution whose inputs four divides",
            fix="give another model, or cut channels: flops=0.5",
        )
    for weight in chosen.values():
        weight.mul_(mask_two_of_four(weight))
    return tuple(name.removesuffix(".weight") for name in chosen)


def mask_two_of_four(weight: Tensor) -> Tensor:
    """Return `True` for the two largest of every four weights along dim 1.

    Args:
        weight: (out, in, ...), `in` a multiple of four.
    """
    fours = weight.detach().abs().unflatten(1, (-1, 4))
    best = fours.topk(2, dim=2).indices
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(2, best, True).flatten(1, 2)


class KeepZeros(Callback):
    """Keeps weights that are zero when training begins at zero: 2:4 stays 2:4.

    It takes a model as `prune(pattern="2:4")` or `DynamicPruning` left it.

    Example:
        ```python
        pruned = prune(engine, pattern="2:4")
        Trainer(pruned.model, data, epochs=3, callbacks=[KeepZeros()]).fit()
        ```
    """

    def __init__(self) -> None:
        self._kept = WeightMasks()

    def on_fit_begin(self, trainer: "Trainer") -> None:
        """Find which weights are zero."""
        self._kept.find(trainer, (), keeps_all=False)
        if self._kept.measured() == 0.0:
            raise ConfigError(
                "KeepZeros, and no weight of the model is zero",
                fix='prune it first: prune(engine, pattern="2:4")',
            )

    def on_step_end(self, trainer: "Trainer", result: "StepResult") -> None:
        """Zero them again."""
        if result.bad is None:
            self._kept.apply(trainer)

    def describe(self) -> str:
        """Return the share of zeros, in all and layer by layer."""
        return self._kept.describe()

    def state_dict(self) -> dict:
        """Return what the weights do not tell: which of their zeros are free."""
        return self._kept.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Take it back."""
        self._kept.load_state_dict(state)


def use_sparse_kernels(engine: ModelEngine) -> tuple[str, ...]:
    """Let a GPU compute the linears that have two zeros in four with its sparse tensor cores.

    Args:
        engine: on a CUDA device, in float16 or bfloat16; changed in place, for inference.

    Returns:
        Names of the linears that are sparse now.

    Raises:
        ConfigError: the device has no such kernels, or the weights are of another dtype.
    """
    device = engine.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        raise ConfigError(
            f"device={device}: two zeros in four make nothing faster here, only GPUs from"
            " compute capability 8.0 on have kernels for them",
            fix="use the model as it is, or a really smaller one: prune(engine, flops=0.5)",
        )
    linears = {n: p for n, p in engine.module.named_modules() if isinstance(p, nn.Linear)}
    chosen = {name: part for name, part in linears.items() if _is_two_of_four(part.weight)}
    wrong = sorted(
        {str(part.weight.dtype) for part in chosen.values()} - set(map(str, SPARSE_DTYPES))
    )
    if wrong or not chosen:
        raise ConfigError(
            f"no linear of {engine.architecture} can use them: weights of {', '.join(wrong)}"
            if wrong
            else f"no linear of {engine.architecture} has two zeros in every four weights",
            fix="engine.to(torch.float16)" if wrong else 'prune(engine, pattern="2:4")',
        )
    for part in chosen.values():
        sparse = torch.sparse.to_sparse_semi_structured(part.weight.detach())
        part.weight = nn.Parameter(sparse, requires_grad=False)
    return tuple(chosen)


def _is_two_of_four(weight: Tensor) -> bool:
    if weight.shape[0] % MIN_DIM or weight.shape[1] % MIN_DIM:
        return False
    zeros = (weight == 0).unflatten(1, (-1, 4)).sum(2)
    return bool((zeros >= 2).all())
