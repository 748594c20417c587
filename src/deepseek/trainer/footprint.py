"""The memory that a run will need, by category: said before its first step, measured after it."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deepseek.config.memory import parse_bytes
from deepseek.config.memory_rules import BF16_OPTIMIZERS
from deepseek.datasets.host_memory import release_freed_memory
from deepseek.datasets.token_masking import SHARE
from deepseek.memory.simulation import LossParts, Simulated, simulate_step
from deepseek.models import Encoder
from deepseek.parallel.plan import ELEMENTWISE
from deepseek.trainer.console import MIB
from deepseek.trainer.held_bytes import bytes_beside, held_bytes
from deepseek.trainer.memory_budget import NAMES
from deepseek.trainer.optimizer import Optimizer
from deepseek.trainer.throughput import (
    available_memory_bytes,
    peak_memory_bytes,
    resident_bytes,
    total_memory_bytes,
)
from deepseek.trainer.walked_peak import is_divided, walk_peak, wants_prediction

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

CHECKED_AFTER = 2
"""Optimizer steps: the first makes the optimizer's state, the second has it."""
CHECKED_AFTER_VARIED = 32
"""Where batches differ in length: the first few need not be long, and holes grow with each."""
TOLERANCE = 0.1
"""Beyond this, in either direction, a run warns."""
LITTLE_BYTES = 64 << 20
"""What a library that is loaded late makes of a process, and cuDNN takes of a GPU, whatever the
model: no run warns of less."""
HOLES = 0.4
"""Of what a step makes, on a CPU: what its heap has between blocks that are in use, too small for
the next one (glibc 2.36, as `mallinfo2` tells). Processes of transformers and ResNets took 0.24 to
0.86 of it more than their tensors, most where an optimizer's state came to lie between the
activations of small batches."""
HOLES_OF_VARIED = 1.0
"""Where batches differ in length, every one leaves holes of its own: encoders on sentences of up to
96 tokens took 0.7 to 1.3 of a step in 16 steps, 0.8 to 1.7 in 48."""

WITHOUT_COMPILING = "predicted as if it ran operator by operator, without what compiling saves"


@dataclass(frozen=True)
class Footprint:
    """Bytes by category at the peak of a step.

    Attributes:
        process: of the process before, on a CPU; on a GPU what torch holds beside the run.
        weights: and buffers.
        optimizer: its state.
        average: moving average of the weights.
        step: activations, gradients and what kernels hand on for a moment, at their most.
        activations: of these, what is kept from forward to backward.
        logits: of the activations, the outputs and what the loss makes of them.
        gradients: of all that is trained.
        buffers: weights that were gathered or cast, and gradients that are not reduced yet.
        holes: of a CPU's heap, between what is in use.
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
    buffers: int
    host: int
    holes: int = 0

    @property
    def peak(self) -> int:
        """The sum; of the end of the backward pass, if that is more than the step's own peak."""
        held = self.process + self.weights + self.optimizer + self.average
        return held + self.step + self.holes

    def describe(self) -> str:
        """Return it in words."""
        logits = self.logits if self.logits >= MIB else 0
        parts = [
            ("process", self.process), ("weights", self.weights), ("optimizer", self.optimizer),
            ("average", self.average), ("gradients", self.gradients),
            ("activations", self.activations - logits), ("logits", logits),
            ("buffers", self.buffers), ("holes", self.holes),
        ]  # fmt: skip
        shown = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in parts if size)
        on_host = f" and {self.host / MIB:,.0f} MiB on the host" if self.host else ""
        return f"{self.peak / MIB:,.0f} MiB ({shown}){on_host}"


class Prediction(NamedTuple):
    """What a step will need on this rank, or why that is not said."""

    footprint: Footprint | None
    why_not: str = ""


def predict_footprint(trainer: "Trainer") -> Prediction:
    """Return what a step will need, run operator by operator; ranks do not meet in it."""
    if trainer.assembly.step.keep_graph:
        return Prediction(None, "keep_graph=true holds the graphs of all micro-batches")
    device = trainer.device
    if device.type == "cpu":
        release_freed_memory()  # what reading the data has freed is not the process's
    resident = resident_bytes(device)
    found = _walked(trainer) if is_divided(trainer.plan) else _simulated(trainer)
    if found.footprint is None:
        return found
    if device.type == "cuda":
        return Prediction(replace(found.footprint, process=bytes_beside(trainer)))
    if device.type != "cpu":
        return found
    process = max(0, resident - sum(held_bytes(trainer).values()))
    share = HOLES_OF_VARIED if trainer.train_loader.varies_in_length else HOLES
    holes = round(share * found.footprint.step)
    return Prediction(replace(found.footprint, process=process, holes=holes))


def _simulated(trainer: "Trainer") -> Prediction:
    simulated = _simulate(trainer)
    if simulated is None:
        return Prediction(None, "the model, its loss or its data need real numbers")
    held, gradients = held_bytes(trainer), simulated.gradient_bytes
    # DDP's buckets are filled in the last micro-batch, from gradients that were added up beside
    twice = gradients if _accumulates(trainer) and _has_buckets(trainer) else 0
    return Prediction(
        Footprint(
            process=0,
            weights=held["weights"],
            optimizer=trainer.assembly.optimizer_bytes,
            average=held["average"],
            step=max(simulated.peak_bytes, gradients) + twice,
            activations=simulated.activation_bytes,
            logits=simulated.logits_bytes,
            gradients=gradients + twice,
            buffers=0,
            host=simulated.host_bytes,
        )
    )


def _walked(trainer: "Trainer") -> Prediction:
    walked = walk_peak(trainer)
    if walked.why_not:
        return Prediction(None, walked.why_not)
    parts = walked.parts
    kept = {name: parts[name] for name in ("weights", "optimizer", "average")}
    return Prediction(
        Footprint(
            process=0,
            **kept,
            step=sum(parts.values()) - sum(kept.values()),
            activations=parts["activations"] + parts["logits"],
            logits=parts["logits"],
            gradients=parts["gradients"],
            buffers=parts["buffers"],
            host=walked.host_bytes,
        )
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
    plan = trainer.world.plan
    is_whole = plan.tp == plan.pp == 1 and not _accumulates(trainer)
    if not config.optimizer_in_backward and is_whole:
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
    memory, module = trainer.assembly.step.graph.memory, trainer.model.module
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
    inputs, parts = _maker(count, spec.fields["inputs"].shape, dtype), None
    targets = _maker(count, spec.fields["targets"].shape, spec.fields["targets"].dtype)
    # The first step of an epoch has no gradients before it; accumulation has, from the second
    # micro-batch on, and DDP's buckets are there all the time.
    has_gradients = _accumulates(trainer) or _has_buckets(trainer)
    at_labels = nullcontext()
    if step.graph.labels_alone and isinstance(module, Encoder):
        num_labels = round(SHARE * count * spec.fields["targets"].shape[0])
        targets = _maker(1, (num_labels,), "int64")
        at_labels = module.logits_at(slice(num_labels))
    if trainer.config.loss_chunks > 1:
        parts = LossParts(
            trainer.config.loss_chunks,
            trainer.model.hints.head,
            lambda logits, at: step.task.loss(logits, {"targets": targets()[:, at].to(device)}),
        )
    try:
        with at_labels:
            return simulate_step(
                module,
                inputs,
                lambda outputs: step.task.loss(outputs, {"targets": targets().to(device)}),
                parts=parts,
                policy=policy or memory.name,
                keeps_norms=memory.keeps_norms,
                remade_places=memory.remade_places if policy is None else None,
                copied_places=copied,
                blocks=_names(module, memory.blocks),
                recomputed=memory.recomputed if policy is None else frozenset(),
                autocast=_autocast(trainer, device),
                has_gradients=has_gradients,
                frees_gradients=step.in_backward is not None,
                is_on_cpu=trainer.device.type == "cpu",
                device=device,
            )
    except Exception:
        # any model and any task may do anything; the prediction is a courtesy
        return None


def _accumulates(trainer: "Trainer") -> bool:
    share = trainer.assembly.step.micro_batch_size * trainer.world.plan.num_shares
    return share < trainer.config.batch_size


def _has_buckets(trainer: "Trainer") -> bool:
    """Return whether gradients lie in DDP's buckets, which are there all the time."""
    return isinstance(trainer.assembly.step.parallel.forward, DistributedDataParallel)


def _device_on_paper(trainer: "Trainer", copied: frozenset[int] | None) -> str:
    """Return the type of the device of a step's fake tensors: that of the run, or the CPU.

    Copies to the host go by streams, which are real; and a task of the user's that moves something
    to a device, and keeps it, would be left with a tensor without numbers.
    """
    is_own = type(trainer.assembly.step.task).__module__.partition(".")[0] == "deepseek"
    return trainer.device.type if is_own and copied == frozenset() else "cpu"


def _names(module: nn.Module, blocks: Sequence[nn.Module]) -> list[str]:
    names = {id(each): name for name, each in module.named_modules()}
    return [names[id(block)] for block in blocks]


def _maker(count: int, shape: tuple[int, ...], dtype: str) -> Callable[[], Tensor]:
    return lambda: torch.zeros((count, *shape), dtype=getattr(torch, dtype))


def _autocast(trainer: "Trainer", device: str) -> Callable[[], AbstractContextManager]:
    dtype = trainer.assembly.precision.compute_dtype
    return lambda: torch.autocast(device, dtype=dtype, enabled=dtype is not torch.float32)


def announce_footprint(trainer: "Trainer") -> None:
    """Say what the run will need, and keep it to be compared; every rank calls it."""
    if not wants_prediction(trainer):
        return
    predicted = Prediction(trainer.footprint)
    if trainer.footprint is None:  # else a budget has asked for it
        predicted = predict_footprint(trainer)
    trainer.footprint = footprint = predicted.footprint
    world, say = trainer.world, trainer.recorder.console.line
    available = available_memory_bytes(trainer.device)
    peak = 0 if footprint is None else footprint.peak
    found = world.exchange([peak, predicted.why_not, available])
    reasons = [why for _, why, _ in found if why]
    if footprint is None or reasons:
        trainer.footprint = None
        say(f"memory no peak is predicted: {reasons[0]}")
        return
    # a process that has had more before says nothing of this run by its peak
    is_host = trainer.device.type == "cpu"
    if not world.any(is_host and peak_memory_bytes(trainer.device) >= footprint.peak):
        if trainer.device.type == "cuda":  # what was tried before the first step is not the run's
            torch.cuda.reset_peak_memory_stats(trainer.device)
        trainer.checks_memory_at = _choose_step(trainer)
    total = total_memory_bytes(trainer.device)
    most, rank = max((peak, rank) for rank, (peak, _, _) in enumerate(found))
    text = f"memory predicted peak {footprint.describe()} of {total / MIB:,.0f} MiB"
    if available < total:
        text += f" ({available / MIB:,.0f} left to this process)"
    if world.is_distributed:
        text += f" on rank 0; the most is {most / MIB:,.0f} MiB, on rank {rank}"
    say(text + (f"; {WITHOUT_COMPILING}" if is_compiled(trainer) else ""))
    room = min((room for peak, _, room in found if peak > room), default=None)
    if room is not None:
        others = "" if room == total else " that others leave"
        trainer.warn(
            f"the predicted peak is above the {room / MIB:,.0f} MiB of this device{others}: set"
            " trainer.memory, a larger trainer.grad_accum_steps, or trainer.parallel=fsdp."
            f" {describe_savings(trainer)}"
        )


def _choose_step(trainer: "Trainer") -> int:
    """Return the number of the step after which the prediction is compared."""
    after = CHECKED_AFTER
    if trainer.train_loader.varies_in_length:
        end = trainer.assembly.length.max_steps
        left = CHECKED_AFTER_VARIED if end is None else end - trainer.step
        after = max(after, min(CHECKED_AFTER_VARIED, left))
    return trainer.step + after


def is_compiled(trainer: "Trainer") -> bool:
    """Return whether a step is compiled, as a whole or block by block."""
    graph = trainer.assembly.step.graph
    return graph.is_static or graph.memory.compiles


def check_footprint(trainer: "Trainer") -> None:
    """Compare the prediction with what has been used, once; every rank calls it."""
    footprint, world = trainer.footprint, trainer.world
    if footprint is None:
        return
    optimizer = held_bytes(trainer)["optimizer"]
    if trainer.device.type == "cpu":
        # libraries that were loaded since are the process's, too; what a step frees is given back
        release_freed_memory()
        held = footprint.weights + optimizer + footprint.average
        footprint = replace(footprint, process=resident_bytes(trainer.device) - held)
    measured, predicted = peak_memory_bytes(trainer.device), footprint.peak
    found = world.exchange([measured, predicted, optimizer - footprint.optimizer])
    by_rank = [[measured, predicted] for measured, predicted, _ in found]
    trainer.folder.add_event(
        "memory_peak", step=trainer.step, predicted_bytes=predicted, measured_bytes=measured,
        by_rank=by_rank,
    )  # fmt: skip
    _warn_if_over(trainer, max(used for used, _ in by_rank))
    off = [measured / predicted - 1 for measured, predicted in by_rank]
    text = (
        f"memory measured {measured / MIB:,.0f} MiB, predicted {predicted / MIB:,.0f}"
        f" ({off[0]:+.1%})"
    )
    if world.is_distributed:
        text += f" on rank 0; {min(off):+.1%} to {max(off):+.1%} on all {world.size}"
    if is_compiled(trainer):
        trainer.recorder.console.line(f"{text}; {WITHOUT_COMPILING}")
        return
    trainer.recorder.console.line(text)
    rank = max(range(world.size), key=lambda rank: math.fabs(off[rank]))
    _warn_if_off(trainer, rank, *found[rank])


def _warn_if_over(trainer: "Trainer", measured: int) -> None:
    """Warn where a number of bytes that memory was set to was not kept to."""
    setting = trainer.config.memory
    if setting in NAMES or isinstance(setting, float):
        return
    if measured > (limit := parse_bytes(str(setting))):
        what = "the compiler's own is in it; " if is_compiled(trainer) else ""
        trainer.warn(
            f"memory={setting} was exceeded: {measured / MIB:,.0f} MiB were used, of"
            f" {limit / MIB:,.0f} ({what}set a smaller budget or a larger trainer.grad_accum_steps)"
        )


def _warn_if_off(
    trainer: "Trainer", rank: int, measured: int, predicted: int, by_optimizer: int
) -> None:
    """Warn of the rank that is off most, and name the category."""
    off, more = measured / predicted - 1, measured - predicted
    if math.fabs(more) < LITTLE_BYTES or math.fabs(off) <= TOLERANCE:
        return
    if more < 0 and trainer.train_loader.varies_in_length:
        return  # the longest batch, which is predicted, may be to come
    rest = more - by_optimizer
    culprit = f"activations, and what kernels and loaders take ({rest / MIB:+,.0f} MiB)"
    if math.fabs(by_optimizer) > math.fabs(rest):
        culprit = f"the optimizer's state ({by_optimizer / MIB:+,.0f} MiB)"
    where = f" on rank {rank}" if trainer.world.is_distributed else ""
    trainer.warn(f"memory is {off:+.0%} off what was predicted{where}, by {culprit}")
