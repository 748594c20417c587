"""How weights are updated: all at once, weight by weight, or in the backward pass."""

from collections.abc import Iterable

import torch
from torch import Tensor

from deepseek.config import TrainerConfig
from deepseek.errors import ConfigError
from deepseek.memory.weightwise import BackwardUpdate, HostState, WeightwiseOptimizer
from deepseek.parallel.apply import ParallelModel
from deepseek.trainer.optimizer import Optimizer

NEEDS_ALL_WEIGHTS = ("lamb",)
"""Optimizers that look at the gradients of all weights together."""


def choose_update(
    config: TrainerConfig, parallel: ParallelModel, optimizer: torch.optim.Optimizer
) -> tuple[WeightwiseOptimizer | None, BackwardUpdate | None]:
    """Return what steps weight by weight, and what does so in the backward pass.

    Raises:
        ConfigError: the device, the ranks or the optimizer do not allow it.
    """
    host = None
    if config.offload == "optimizer":
        _check_offload(config, parallel.world.device)
        host = HostState()
    if config.optimizer_in_backward:
        if parallel.world.is_distributed:
            raise ConfigError(
                f"optimizer_in_backward=true with parallel={parallel.world.plan.describe()}:"
                " gradients are not reduced between ranks yet when they are there",
                fix="set optimizer_in_backward to false; parallel=fsdp divides gradients",
            )
        weightwise = WeightwiseOptimizer(optimizer, host)
        weights = parallel.weights.named_trained()
        return weightwise, BackwardUpdate(weightwise, weights)
    return (None if host is None else WeightwiseOptimizer(optimizer, host)), None


def _check_offload(config: TrainerConfig, device: torch.device) -> None:
    if device.type == "cpu":
        raise ConfigError(
            "offload=optimizer on a CPU, whose memory the state is in already",
            fix="set offload to none; optimizer=adamw8bit keeps a quarter of the state",
        )
    if config.precision == "fp16" or config.optimizer.lower() in NEEDS_ALL_WEIGHTS:
        name = "precision" if config.precision == "fp16" else "optimizer"
        raise ConfigError(
            f"offload=optimizer with {name}={getattr(config, name)}, which looks at the gradients"
            " of all weights before it updates one",
            fix=f"use another {name} (precision=bf16, optimizer=adamw), or set offload to none",
        )


def state_bytes_on_device(
    config: TrainerConfig, recipe: Optimizer, weights: Iterable[Tensor]
) -> int:
    """Return what an optimizer's state will take of the device: of the largest if offloaded."""
    rounds = config.param_dtype == "bf16"
    if config.offload == "optimizer":
        return max((recipe.state_bytes([w], rounds=rounds) for w in weights), default=0)
    return recipe.state_bytes(weights, rounds=rounds)
