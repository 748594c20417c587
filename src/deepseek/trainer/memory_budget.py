"""The memory policy of a run; a budget becomes one by a trial before the first step."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from deepseek.config import TrainerConfig
from deepseek.config.memory import parse_bytes
from deepseek.errors import ConfigError
from deepseek.memory.budget import Census, Choice, Group, Host, choose
from deepseek.memory.epsilons import Epsilons
from deepseek.memory.host_copies import HostCopies
from deepseek.memory.policy import MemoryPolicy
from deepseek.models import ModelEngine
from deepseek.parallel.apply import ParallelModel
from deepseek.trainer.console import MIB
from deepseek.trainer.host_pace import Pace, find_pace, trial_batch
from deepseek.trainer.throughput import resident_bytes

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

NAMES = ("off", "pointwise", "selective", "full")
SPLITTABLE = ("off", "pointwise", "full")
OWN = ("gradient_checkpointing", "grad_checkpointing")
MARGIN = 1.03
"""What a step takes for a moment, beside what is kept: buffers of kernels, a product's output."""


def choose_policy(
    config: TrainerConfig, engine: ModelEngine, parallel: ParallelModel
) -> MemoryPolicy:
    """Return the policy that `memory` names; for a budget, what it begins with.

    Raises:
        ConfigError: `full`, and the model has no blocks; or what the graph or the pipeline cannot
            do.
    """
    setting, is_static = config.memory, "static" in (config.graph, engine.graph)
    plan = parallel.world.plan
    if plan.pp > 1 and "zero_bubble" in plan.settings.schedule and setting not in SPLITTABLE:
        raise ConfigError(
            f"memory={setting} with schedule={plan.settings.schedule}, which takes the gradients of"
            " weights later than those of inputs: matrix products cannot be done again by then",
            fix="set memory to pointwise or full, or schedule=1f1b",
        )
    name = setting if setting in NAMES else "pointwise"
    policy = MemoryPolicy(
        str(name),
        parallel.modules(),
        parallel.blocks(),
        compiles=is_static and parallel.world.is_distributed,
        share=setting if is_static and isinstance(setting, float) else None,
    )
    _refuse_own_checkpointing(config, engine)
    if name == "full" and not policy.blocks:
        raise ConfigError(
            f"memory=full, and {engine.architecture} has no list of blocks to recompute",
            fix="use memory=selective, or put what is repeated into an nn.ModuleList of modules",
        )
    if is_static and setting not in NAMES and not isinstance(setting, float):
        raise ConfigError(
            f"memory={setting} with graph=static: compiled graphs know shares only",
            fix="set memory to a share such as 0.6, or graph=dynamic",
        )
    if config.offload == "activations":
        _check_copies(config, policy, is_static)
        policy.copies = HostCopies()
    return policy


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


def keep_to_budget(trainer: "Trainer") -> None:
    """Resolve a budget by the forward and backward pass of a few samples, as if never taken.

    Raises:
        ConfigError: not even recomputing everything keeps to it.
    """
    setting, step = trainer.config.memory, trainer.assembly.step
    policy = step.graph.memory
    if setting in NAMES or policy.compiles or step.graph.is_static:
        return
    policy.copied_places = frozenset()  # of the passes that are looked at
    census, scale = _look(trainer)
    kept, everything = census.kept_bytes * scale, census.all_bytes * scale
    if isinstance(setting, float):
        allowed, fixed = setting * everything, 0.0
    else:
        fixed = _fixed_bytes(trainer) * MARGIN
        allowed = parse_bytes(str(setting)) - fixed
    pace = find_pace(trainer, allowed / max(1, kept))
    host = None if pace is None else pace.host(kept, scale)
    name, choice = _resolve(census.groups, kept, everything, allowed, scale, host)
    is_dear = pace is not None and 0 < pace.forward_s < scale * choice.cost_s
    if is_dear and choice.copied and policy.blocks:  # waiting takes longer than a forward pass
        name, choice = "full", Choice()
    if name == "full" and not policy.blocks:
        raise _too_small(setting, fixed + kept - _most(census.groups, host) * scale)
    policy.name = name
    policy.remade_places = _places(choice.remade)
    policy.copied_places = _places(choice.copied)
    if choice.copied and policy.copies is None:
        policy.copies = HostCopies()
    _tell(trainer, choice, everything, None if name == "off" else kept, scale, pace)


def _resolve(
    groups: list[Group],
    kept: float,
    everything: float,
    allowed: float,
    scale: float,
    host: Host | None,
) -> tuple[str, Choice]:
    if everything <= allowed:
        return "off", Choice()
    choice = choose(groups, (kept - allowed) / scale, host)
    if choice is None:
        return "full", Choice()
    return "selective" if choice.remade else "pointwise", choice


def _places(groups: Iterable[Group]) -> frozenset[int]:
    return frozenset(place for group in groups for place in group.places)


def _look(trainer: "Trainer") -> tuple[Census, float]:
    """Return what a pass keeps, and how much more a full micro-batch has."""
    step = trainer.assembly.step
    policy, size = step.graph.memory, min(2, step.micro_batch_size)
    census = Census(Epsilons(*policy.modules), step.device)
    with trial_batch(trainer, size) as batch:
        policy.observer = census
        try:
            step.accumulate_once(batch)
        finally:
            policy.observer = None
            census.forget()
    is_part = step.parallel.pipeline is None
    return census, step.micro_batch_size / size if is_part else 1.0


def _fixed_bytes(trainer: "Trainer") -> float:
    """Return the bytes that do not depend on the batch: weights, gradients, optimizer, process."""
    weights = trainer.assembly.step.parallel.weights
    held = sum(weight.local.nbytes for weight in weights.weights)
    trained = sum(weight.local.nbytes for weight in weights.trained)
    process = resident_bytes(trainer.device) if trainer.device.type == "cpu" else held
    average = held if trainer.assembly.step.ema is not None else 0
    return process + average + trained + trainer.assembly.optimizer_bytes


def _most(groups: list[Group], host: Host | None) -> int:
    """Return the bytes that could be given up at most."""
    waits = host is not None and (host.link is not None or host.hidden_bytes == math.inf)
    return sum(
        group.nbytes
        for group in groups
        if group.cost_s is not None or (waits and group.can_be_copied)
    )


def _too_small(setting: object, needed: float) -> ConfigError:
    return ConfigError(
        f"memory={setting} cannot be kept to: {needed / MIB:,.0f} MiB are needed at least",
        fix="raise grad_accum_steps, or divide the model: parallel=fsdp",
        see="docs/errors.md#memory",
    )


def _tell(
    trainer: "Trainer",
    choice: Choice,
    everything: float,
    kept: float | None,
    scale: float,
    pace: Pace | None,
) -> None:
    """Say what came of a budget.

    Args:
        trainer: of the run.
        choice: what is given up of what `pointwise` keeps.
        everything: bytes of all activations.
        kept: bytes that `pointwise` keeps; `None`: nothing is made again.
        scale: from what was looked at to a micro-batch.
        pace: of a pass, where it was measured.
    """
    setting, policy = trainer.config.memory, trainer.assembly.step.graph.memory
    what = [policy.name]
    if choice.remade:
        what.append(f"{len(policy.remade_places or ())} matrix products done again")
    text = f"memory={setting}: {', '.join(what)}; activations {everything / MIB:,.0f} MiB: kept"
    if policy.name == "full":
        text += " the blocks' inputs"
    else:
        left, offloaded = everything if kept is None else kept, choice.copied_bytes * scale
        left -= offloaded + choice.remade_bytes * scale
        parts = {"": left, "recomputed ": everything - left - offloaded, "offloaded ": offloaded}
        text += " " + ", ".join(f"{name}{size / MIB:,.0f}" for name, size in parts.items())
    if choice.cost_s:
        text += f"; adds {1e3 * scale * choice.cost_s:,.1f} ms to a micro-batch"
        text += "" if pace is None or not pace.pass_s else f" of {1e3 * pace.pass_s:,.1f} ms"
    trainer.folder.add_event("memory", step=trainer.step, policy=policy.name, message=text)
    trainer.recorder.console.line(text)
