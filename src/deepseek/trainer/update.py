"""How weights are updated: all at once, weight by weight, or in the backward pass."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from deepseek.config import TrainerConfig
from deepseek.errors import ConfigError
from deepseek.memory.weightwise import BackwardUpdate, HostState, WeightwiseOptimizer
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.data import average_gradients
from deepseek.parallel.world import World
from deepseek.trainer.optimizer import Optimizer

NEEDS_ALL_WEIGHTS = ("lamb",)
"""Optimizers that look at the gradients of all weights together."""


def choose_update(
    config: TrainerConfig, parallel: ParallelModel, optimizer: torch.optim.Optimizer
) -> tuple[WeightwiseOptimizer | None, BackwardUpdate | None]:
    """Return what steps weight by weight, and what does so in the backward pass.

    Raises:
        ConfigError: ranks cannot update in the backward pass under this plan.
    """
    host = HostState() if config.offload == "optimizer" else None
    if config.optimizer_in_backward:
        world = parallel.world
        if world.is_distributed:
            _check_ranks(parallel)
        weightwise = WeightwiseOptimizer(optimizer, host)
        copies = world.is_distributed and not world.plan.uses_fsdp
        average = partial(_average, world) if copies else None
        return weightwise, BackwardUpdate(weightwise, parallel.weights.trained, average)
    return (None if host is None else WeightwiseOptimizer(optimizer, host)), None


def _average(world: World, gradient: Tensor) -> None:
    average_gradients([gradient], world.group("data"), world.plan.settings)


def _check_ranks(parallel: ParallelModel) -> None:
    """Refuse plans under which a gradient is not whole when the backward pass has made it.

    DDP has the gradient of a weight in a bucket with others, which stays from step to step: copies
    of a model do without it, and average each gradient by itself.
    """
    plan, why = parallel.world.plan, ""
    if plan.pp > 1 or plan.tp > 1:
        why = "a pipeline or tp adds up parts of gradients after the backward pass"
    elif plan.settings.compression == "powersgd":
        why = "compression=powersgd needs buckets of many gradients"
    elif parallel.has_unused and not plan.uses_fsdp:
        why = "the model leaves weights out in some steps: ranks would wait for each other's"
    if why:
        raise ConfigError(
            f"optimizer_in_backward=true with parallel={plan.describe()}: {why}",
            fix="set optimizer_in_backward to false, or use fsdp or dp alone",
        )


def check_offload(config: TrainerConfig, world: World) -> None:
    """Check that the device, the ranks and the optimizer allow what `offload` wants.

    Raises:
        ConfigError: they do not.
    """
    wanted, plan = config.offload, world.plan
    if wanted in ("none", "activations"):  # these are the memory policy's
        return
    if world.device.type == "cpu":
        raise ConfigError(
            f"offload={wanted} on a CPU, whose memory all is in already",
            fix="set offload to none; optimizer=adamw8bit keeps a quarter of the state",
        )
    if wanted == "parameters" and (not plan.uses_fsdp or plan.tp > 1):
        raise ConfigError(
            f"offload=parameters with parallel={plan.describe()}: only fsdp without tp can",
            fix="set parallel=fsdp, or offload=optimizer",
        )
    looks_at_all = wanted == "optimizer" and config.optimizer.lower() in NEEDS_ALL_WEIGHTS
    if config.precision == "fp16" or looks_at_all:
        name = "precision" if config.precision == "fp16" else "optimizer"
        raise ConfigError(
            f"offload={wanted} with {name}={getattr(config, name)}, which looks at the gradients"
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
