"""What a run says of steps that went otherwise than asked for: smaller, or uncompiled."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from deepseek.trainer.footprint import describe_savings, predict_footprint
from deepseek.trainer.graph import StepGraph

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer


def note_halved(trainer: "Trainer", micro_batch_size: int) -> None:
    """Say that memory ran out, and what is done instead."""
    text = (
        f"step {trainer.step + 1}: out of memory; micro-batches of {micro_batch_size} samples from"
        f" now on, batch_size={trainer.config.batch_size} as before"
    )
    trainer.folder.add_event(
        "out_of_memory", step=trainer.step, micro_batch_size=micro_batch_size, message=text
    )
    trainer.recorder.console.line(text)
    if trainer.footprint is not None:
        trainer.recorder.console.line(f"alive at the peak: {trainer.footprint.describe()}")
        smaller = predict_footprint(trainer).footprint
        if smaller is not None:
            smaller = replace(smaller, process=trainer.footprint.process)
        trainer.footprint = smaller
        trainer.checks_memory_at = None  # the peak was that of a pass that was abandoned
    if savings := describe_savings(trainer):
        trainer.recorder.console.line(savings)


def watch_graph(trainer: "Trainer", graph: StepGraph) -> None:
    """Warn of what a run's graph does not compile."""
    graph.on_other_shape = partial(note_other_shape, trainer)
    graph.on_loss_uncompiled = partial(note_uncompiled_loss, trainer)


def note_uncompiled_loss(trainer: "Trainer", reason: str) -> None:
    """Warn of a loss that cannot be compiled."""
    trainer.warn(
        "the loss of a part cannot be compiled, and runs operator by operator"
        f" (trainer.compile_loss=false leaves it so): {reason}"
    )


def note_other_shape(trainer: "Trainer", shape: tuple[int, ...]) -> None:
    """Warn of inputs that a compiled graph does not take."""
    shown = "x".join(str(size) for size in shape)
    trainer.warn(
        f"step {trainer.step + 1}: inputs {shown} are no full micro-batch of"
        f" {trainer.assembly.step.micro_batch_size} samples: such steps run uncompiled"
    )
