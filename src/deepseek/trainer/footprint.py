"""The memory that a run will need, by category: said before its first step, measured after it."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepseek.config.memory import parse_bytes
from deepseek.config.memory_rules import BF16_OPTIMIZERS
from deepseek.datasets.host_memory import release_freed_memory
from deepseek.datasets.token_masking import SHARE
from deepseek.errors import ConfigError
from deepseek.memory.simulation import Simulated, simulate_step
from deepseek.models import Encoder
from deepseek.parallel.plan import ELEMENTWISE
from deepseek.trainer.console import MIB
from deepseek.trainer.memory_budget import NAMES
from deepseek.trainer.optimizer import Optimizer
from deepseek.trainer.throughput import (
    peak_memory_bytes,
    resident_bytes,
    total_memory_bytes,
)

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

CHECKED_AFTER = 2
"""Optimizer steps: the first makes the optimizer's state, the second has it."""
TOLERANCES = {"cpu": 0.25}
"""Beyond this, in either direction, a run warns; 0.1 elsewhere. The process of a CPU also holds
what was freed and not yet used again, which no allocator tells."""
LITTLE_BYTES = 256 << 20
"""What libraries that are loaded late make of a process, and cuBLAS and cuDNN take of a GPU,
whatever the model."""


@dataclass(frozen=True)
class Footprint:
    """Bytes by category at the peak of a step.

    Attributes:
        process: of the process before, on a CPU.
        weights: and buffers.
        optimizer: its state.
        average: moving average of the weights.
        step: activations, gradients and what kernels hand on for a moment, at their most.
        activations: of these, what is kept from forward to backward.
        logits: of the activations, the outputs and what the loss makes of them.
        gradients: of all that is trained.
        host: activations that wait on the host of an accelerator, beside the peak.
    """

    process: int
    weights: int
    optimizer: int
    average: int
    step: int
    activations: int
    logits: int
    gradients: int
    host: int

    @property
    def peak(self) -> int:
        """The sum; of the end of the backward pass, if that is more than the step's own peak."""
        return self.process + self.weights + self.optimizer + self.average + self.step

    def describe(self) -> str:
        """Return it in words."""
        logits = self.logits if self.logits >= MIB else 0
        parts = [
            ("process", self.process), ("weights", self.weights), ("optimizer", self.optimizer),
            ("average", self.average), ("gradients", self.gradients),
            ("activations", self.activations - logits), ("logits", logits),
        ]  # fmt: skip
        shown = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in parts if size)
        on_host = f" and {self.host / MIB:,.0f} MiB on the host" if self.host else ""
        return f"{self.peak / MIB:,.0f} MiB ({shown}){on_host}"


def predict_footprint(trainer: "Trainer") -> Footprint | None:
    """Return what a step will need; `None` for a divided model, or one that needs real numbers."""
    assembly, plan = trainer.assembly, trainer.world.plan
    is_divided = plan.divides_weights or plan.pp > 1 or plan.cp > 1
    if is_divided or assembly.step.graph.is_static or assembly.step.keep_graph:
        return None
    simulated = _simulate(trainer)
    if simulated is None:
        return None
    held = held_bytes(trainer)
    device = trainer.device
    if device.type == "cpu":
        release_freed_memory()  # what reading the data has freed is not the process's
    process = resident_bytes(device) - held["weights"] if device.type == "cpu" else 0
    return Footprint(
        process=max(0, process),
        weights=held["weights"],
        optimizer=assembly.optimizer_bytes,
        average=held["average"],
        step=max(simulated.peak_bytes, simulated.gradient_bytes),
        activations=simulated.activation_bytes,
        logits=simulated.logits_bytes,
        gradients=simulated.gradient_bytes,
        host=simulated.host_bytes,
    )


def describe_savings(trainer: "Trainer") -> str:
    """Return what policies and savers would leave of a step's peak; empty if unknown."""
    return "; ".join(filter(None, [_policy_savings(trainer), _saver_savings(trainer)]))


def _saver_savings(trainer: "Trainer") -> str:
    """Return what would become less of weights, gradients and optimizer state, by which setting."""
    config, assembly = trainer.config, trainer.assembly
    weights = [weight.local for weight in assembly.step.parallel.weights.trained]
    trained, state = sum(weight.nbytes for weight in weights), assembly.optimizer_bytes
    name, parts = assembly.optimizer.algorithm, {}
    if name in ("adam", "adamw", "nadamw"):
        parts["optimizer=adamw8bit"] = state - Optimizer("adamw8bit").state_bytes(weights)
    if trainer.device.type != "cpu" and config.offload == "none" and name != "lamb":
        parts["offload=optimizer"] = state
    if trainer.device.type == "cuda" and config.offload == "none":
        parts["offload=activations"] = _copied_bytes(trainer)
    if config.param_dtype == "fp32" and name in BF16_OPTIMIZERS and config.ema_decay is None:
        parts["param_dtype=bf16"] = trained  # half of weights, and of gradients
    share = assembly.step.micro_batch_size * trainer.world.plan.num_shares
    is_one = share >= config.batch_size
    plan = trainer.world.plan
    if not config.optimizer_in_backward and is_one and plan.tp == plan.pp == 1:
        parts["optimizer_in_backward=true"] = trained - max(w.nbytes for w in weights)
    if plan.world_size == plan.dp_replicate > 1 and config.optimizer.lower() in ELEMENTWISE:
        held = sum(weight.local.nbytes for weight in assembly.step.parallel.weights.weights)
        whole = held + trained + state
        parts["parallel=fsdp"] = whole - whole // plan.world_size
    shown = [f"{saver} {size / MIB:,.0f} MiB" for saver, size in parts.items() if size >= MIB]
    return f"less by {', '.join(shown)}" if shown else ""


def _copied_bytes(trainer: "Trainer") -> int:
    """Return what a step's peak would be less by if all that is kept went to the host."""
    graph = trainer.assembly.step.graph
    if graph.memory.name == "full" or graph.is_static or graph.memory.compiles:
        return 0
    now, found = _simulate(trainer, on="cpu"), _simulate(trainer, copies_all=True)
    return 0 if now is None or found is None else now.peak_bytes - found.peak_bytes


def _policy_savings(trainer: "Trainer") -> str:
    memory = trainer.assembly.step.graph.memory
    now = _simulate(trainer)
    if now is None or memory.name not in NAMES:
        return ""
    parts = []
    for name in NAMES[NAMES.index(memory.name) + 1 :]:
        found = _simulate(trainer, name)
        if found is not None and found.peak_bytes < now.peak_bytes:
            parts.append(f"memory={name} {found.peak_bytes / MIB:,.0f} MiB")
    if not parts:
        return ""
    return (
        f"a micro-batch needs {now.peak_bytes / MIB:,.0f} MiB beside weights and optimizer state;"
        f" with {', '.join(parts)}"
    )


def _simulate(
    trainer: "Trainer",
    policy: str | None = None,
    *,
    copies_all: bool = False,
    on: str | None = None,
) -> Simulated | None:
    """Return what a micro-batch allocates; `None` where that cannot be told.

    Args:
        trainer: assembled.
        policy: instead of the run's.
        copies_all: take all that is kept to the host, instead of what the run takes.
        on: type of the device of the fake tensors; `None`: see `_device_on_paper`.
    """
    memory = trainer.assembly.step.graph.memory
    copied = memory.copied_places if memory.copies is not None else frozenset()
    if copies_all:
        copied = None
    elif policy is not None and copied is not None:
        copied = frozenset()  # of a budget's, which were chosen for another policy
    step, spec = trainer.assembly.step, trainer.spec
    if not {"inputs", "targets"} <= spec.fields.keys():
        return None
    count = step.micro_batch_size
    takes_images = len(spec.fields["inputs"].shape) == 3
    # pictures come as uint8 and are normalised before the module
    dtype = "float32" if takes_images else spec.fields["inputs"].dtype
    device = on or _device_on_paper(trainer, copied)
    inputs = _maker(count, spec.fields["inputs"].shape, dtype)
    targets = _maker(count, spec.fields["targets"].shape, spec.fields["targets"].dtype)
    # The first step of an epoch has no gradients before it; accumulation has, from the second
    # micro-batch on.
    accumulates = step.micro_batch_size * trainer.world.plan.num_shares < trainer.config.batch_size
    module, at_labels = trainer.model.module, nullcontext()
    if step.graph.labels_alone and isinstance(module, Encoder):
        num_labels = round(SHARE * count * spec.fields["targets"].shape[0])
        targets = _maker(1, (num_labels,), "int64")
        at_labels = module.logits_at(slice(num_labels))
    try:
        with at_labels:
            return simulate_step(
                module,
                inputs,
                lambda outputs: step.task.loss(outputs, {"targets": targets().to(device)}),
                policy=policy or memory.name,
                remade_places=memory.remade_places if policy is None else None,
                copied_places=copied,
                autocast=_autocast(trainer, device),
                has_gradients=accumulates,
                frees_gradients=step.in_backward is not None,
                is_on_cpu=trainer.device.type == "cpu",
                device=device,
            )
    except Exception:
        # any model and any task may do anything; the prediction is a courtesy
        return None


def _device_on_paper(trainer: "Trainer", copied: frozenset[int] | None) -> str:
    """Return the type of the device of a step's fake tensors: that of the run, or the CPU.

    Copies to the host go by streams, which are real; and a task of the user's that moves something
    to a device, and keeps it, would be left with a tensor without numbers.
    """
    is_own = type(trainer.assembly.step.task).__module__.partition(".")[0] == "deepseek"
    return trainer.device.type if is_own and copied == frozenset() else "cpu"


def _maker(count: int, shape: tuple[int, ...], dtype: str) -> Callable[[], Tensor]:
    return lambda: torch.zeros((count, *shape), dtype=getattr(torch, dtype))


def _autocast(trainer: "Trainer", device: str) -> Callable[[], AbstractContextManager]:
    dtype = trainer.assembly.precision.compute_dtype
    return lambda: torch.autocast(device, dtype=dtype, enabled=dtype is not torch.float32)


def announce_footprint(trainer: "Trainer") -> None:
    """Say what the run will need, and keep it to be compared."""
    footprint = predict_footprint(trainer)
    trainer.footprint = footprint
    if footprint is None:
        return
    is_host = trainer.device.type == "cpu"
    if not is_host or peak_memory_bytes(trainer.device) < footprint.peak:
        # else the process has had more before, and its peak says nothing of this run
        trainer.checks_memory_at = trainer.step + CHECKED_AFTER
    total = total_memory_bytes(trainer.device)
    trainer.recorder.console.line(
        f"memory predicted peak {footprint.describe()} of {total / MIB:,.0f} MiB"
    )
    setting = trainer.config.memory
    if isinstance(setting, str) and setting not in NAMES:
        _check_budget(footprint, setting)
    if footprint.peak > total:
        trainer.warn(
            f"the predicted peak is above the {total / MIB:,.0f} MiB of this device: set"
            " trainer.memory, a larger trainer.grad_accum_steps, or trainer.parallel=fsdp."
            f" {describe_savings(trainer)}"
        )


def _check_budget(footprint: Footprint, setting: str) -> None:
    if footprint.peak > parse_bytes(setting):
        raise ConfigError(
            f"memory={setting} cannot be kept to: the least is {footprint.describe()}",
            fix="raise memory or grad_accum_steps, or divide the model: parallel=fsdp",
            see="docs/errors.md#memory",
        )


def check_footprint(trainer: "Trainer") -> None:
    """Compare the prediction with what has been used, once."""
    footprint = trainer.footprint
    if footprint is None:
        return
    optimizer = held_bytes(trainer)["optimizer"]
    if trainer.device.type == "cpu":
        # libraries that were loaded since are the process's, too; what a step frees is given back
        release_freed_memory()
        held = footprint.weights + optimizer + footprint.average
        footprint = replace(footprint, process=resident_bytes(trainer.device) - held)
    measured = peak_memory_bytes(trainer.device)
    off = measured / footprint.peak - 1
    trainer.folder.add_event(
        "memory_peak", step=trainer.step, predicted_bytes=footprint.peak, measured_bytes=measured
    )
    trainer.recorder.console.line(
        f"memory measured {measured / MIB:,.0f} MiB, predicted {footprint.peak / MIB:,.0f}"
        f" ({off:+.1%})"
    )
    is_little = math.fabs(measured - footprint.peak) < LITTLE_BYTES
    if not is_little and math.fabs(off) > TOLERANCES.get(trainer.device.type, 0.1):
        by_optimizer = optimizer - footprint.optimizer
        rest = measured - footprint.peak - by_optimizer
        culprit = f"activations, and what kernels and loaders take ({rest / MIB:+,.0f} MiB)"
        if math.fabs(by_optimizer) > math.fabs(rest):
            culprit = f"the optimizer's state ({by_optimizer / MIB:+,.0f} MiB)"
        trainer.warn(f"memory is {off:+.0%} off what was predicted, by {culprit}")


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
