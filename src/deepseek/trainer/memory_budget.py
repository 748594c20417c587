"""The memory policy that the settings name; of a budget, what it begins with."""

import torch

from deepseek.config import TrainerConfig
from deepseek.errors import ConfigError
from deepseek.memory.host_copies import HostCopies
from deepseek.memory.policy import MemoryPolicy
from deepseek.models import ModelEngine
from deepseek.parallel.apply import ParallelModel

NAMES = ("off", "pointwise", "selective", "full")
OWN = ("gradient_checkpointing", "grad_checkpointing")


def choose_policy(
    config: TrainerConfig, engine: ModelEngine, parallel: ParallelModel
) -> MemoryPolicy:
    """Return the policy that `memory` names; for a budget, what it begins with.

    Raises:
        ConfigError: `full`, and the model has no blocks; or what the graph cannot do.
    """
    setting, is_static = config.memory, "static" in (config.graph, engine.graph)
    name = setting if setting in NAMES else "pointwise"
    policy = MemoryPolicy(
        str(name),
        parallel.modules(),
        parallel.blocks(),
        compiles=is_static and parallel.world.is_distributed,
    )
    policy.keeps_norms = setting in NAMES and not remakes_norms(config, parallel.world.device)
    _refuse_own_checkpointing(config, engine)
    if name == "full" and not policy.blocks:
        raise ConfigError(
            f"memory=full, and {engine.architecture} has no list of blocks to recompute",
            fix="use memory=selective, or put what is repeated into an nn.ModuleList of modules",
        )
    if config.offload == "activations":
        _check_copies(config, policy, is_static)
        policy.copies = HostCopies()
    return policy


def remakes_norms(config: TrainerConfig, device: torch.device) -> bool:
    """Return whether `pointwise` makes again what layer norms make.

    They compute little and move much: what a CPU does in passing a GPU waits for.
    """
    if config.remake_norms != "auto":
        return config.remake_norms
    return device.type != "cuda"


def _check_copies(config: TrainerConfig, policy: MemoryPolicy, is_static: bool) -> None:
    if is_static:
        raise ConfigError(
            "offload=activations with graph=static: what a compiled graph keeps is not its own to"
            " copy",
            fix="set graph=dynamic, or offload to none",
        )
    if policy.name == "full":
        raise ConfigError(
            "offload=activations with memory=full, which keeps the blocks' inputs itself: nothing"
            " else is left to copy",
            fix="set memory to off, pointwise or selective, or offload to none",
        )


def _refuse_own_checkpointing(config: TrainerConfig, engine: ModelEngine) -> None:
    """What a model recomputes by itself can be asked for once, and a recipe would ask first."""
    for name, module in engine.module.named_modules():
        if config.memory != "off" and any(getattr(module, each, 0) is True for each in OWN):
            raise ConfigError(
                f"memory={config.memory}, and {name or engine.architecture} recomputes by its own"
                " gradient checkpointing",
                fix="turn that off in the model (gradient_checkpointing_disable,"
                " set_grad_checkpointing(False)), or set memory=off",
            )
