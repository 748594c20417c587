"""The largest micro-batch that fits into memory, found by trying before the first step."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deepseek.errors import ConfigError
from deepseek.trainer.estimate import StepEstimate
from deepseek.trainer.out_of_memory import is_out_of_memory
from deepseek.trainer.step import TrainStep
from deepseek.trainer.task import Batch

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

USABLE_SHARE = 0.9
"""Share of the free memory of a CPU that a step may take: beyond it, Linux ends processes."""


def probe(trainer: "Trainer") -> None:
    """Set the micro-batch of a run to the largest that fits; the position in the data stays.

    Raises:
        ConfigError: not even one sample fits.
    """
    assembly, loader = trainer.assembly, trainer.train_loader
    step, place, say = assembly.step, loader.state_dict(), trainer.recorder.console.line
    step.boundary.open(is_step=False)
    batch = next(iter(loader))
    loader.load_state_dict(place)
    fits = fits_free_memory(assembly.estimate, assembly.activation_share, trainer.device)
    step.micro_batch_size = find_micro_batch_size(step, batch, fits, say)
    step.boundary.close()
    trainer.folder.add_event("probe", step=trainer.step, micro_batch_size=step.micro_batch_size)
    num = -(-len(batch["targets"]) // step.micro_batch_size)
    say(f"{num} micro-batch{'es' * (num > 1)} of {step.micro_batch_size} samples a step")


def find_micro_batch_size(
    step: TrainStep,
    batch: Batch,
    fits_by_estimate: Callable[[int], bool],
    say: Callable[[str], None],
) -> int:
    """Return the largest number of samples whose forward and backward pass fit, balanced.

    Nothing is left of the attempts: no gradient, buffers and generators as before.

    Args:
        step: what is tried; its `boundary` must be open.
        batch: a whole batch, on the host.
        fits_by_estimate: whether that many samples are worth an attempt.
        say: told of each attempt.

    Raises:
        ConfigError: not even one sample fits.
    """
    num_samples = len(batch["targets"])
    fits, too_large = 0, num_samples + 1
    size = num_samples
    while too_large - fits > 1:
        does_fit = fits_by_estimate(size) and _fits(step, batch, size)
        say(f"probe: micro-batch of {size} {'fits' if does_fit else 'does not fit'}")
        if does_fit:
            fits = size
        else:
            too_large = size
        size = max(1, too_large // 2) if fits == 0 else (fits + too_large) // 2
    if fits == 0:
        raise ConfigError(
            "one sample alone does not fit into memory",
            fix="use smaller inputs, a smaller model, or precision=bf16",
        )
    num_parts = -(-num_samples // fits)
    return -(-num_samples // num_parts)


def _fits(step: TrainStep, batch: Batch, size: int) -> bool:
    part = {name: value[:size] for name, value in batch.items()}
    graph, micro_batch_size = step.graph, step.micro_batch_size
    is_static, compiles_loss = graph.is_static, graph.compiles_loss
    graph.is_static = graph.compiles_loss = False
    step.micro_batch_size = size
    try:
        step.accumulate_once(part)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        graph.is_static, graph.compiles_loss = is_static, compiles_loss
        step.micro_batch_size = micro_batch_size
        step.abandon()
        if step.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def fits_free_memory(
    estimate: StepEstimate | None, activation_share: float, device: torch.device
) -> Callable[[int], bool]:
    """Return whether the activations of a number of samples fit into the free memory of a CPU.

    An accelerator says itself, unharmed, when its memory is at an end.
    """
    free = free_host_bytes() if device.type == "cpu" else None
    if estimate is None or free is None:
        return lambda size: True
    per_sample = estimate.activation_bytes * activation_share
    fixed = 4 * estimate.num_trainable  # gradients; weights are there already
    return lambda size: fixed + per_sample * size <= USABLE_SHARE * free


def free_host_bytes() -> int | None:
    """Return the bytes that processes may still take, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None
