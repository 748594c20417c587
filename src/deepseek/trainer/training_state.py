"""Everything that training depends on, to a checkpoint and back."""

from pathlib import Path
from typing import TYPE_CHECKING

from deepseek.checkpoint import (
    Checkpoint,
    CheckpointStore,
    RandomState,
    join_state,
    load_checkpoint,
    split_state,
)
from deepseek.errors import CheckpointError, ConfigError, DeepSeekError

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer


def capture(trainer: "Trainer") -> Checkpoint:
    """Return the state of a run at its last step boundary. Tensors are not copied."""
    step, boundary = trainer.assembly.step, trainer.assembly.step.boundary
    optimizer, optimizer_rest = split_state(step.optimizer)
    model = trainer.model.module.state_dict()
    kept = boundary.buffers()
    model.update((name, kept[name]) for name in kept.keys() & model.keys())
    tensors = {"model": model, "optimizer": optimizer}
    if step.ema is not None:
        tensors["ema"] = step.ema.state_dict()
    state = {
        "data": boundary.data if boundary.is_open else trainer.train_loader.state_dict(),
        "random": (boundary.random if boundary.is_open else RandomState.read()).to_json(),
        "batch_size": trainer.train_loader.batch_size,
        "micro_batch_size": step.micro_batch_size,
        "optimizer": optimizer_rest,
        "scaler": step.scaler.state_dict(),
        "guard": step.guard.state_dict(),
        "recorder": trainer.recorder.state_dict(),
        "callbacks": [callback.state_dict() for callback in trainer.callbacks],
        "progress": trainer.progress.state_dict(),
    }
    return Checkpoint(trainer.progress.step, tensors, state)


def find_checkpoint(store: CheckpointStore, resume: bool | str | Path) -> Checkpoint:
    """Load the checkpoint that `resume` names, or the newest whole one of the run.

    A named one becomes the newest: those after it belong to a course that the run leaves, and are
    set aside.

    Raises:
        CheckpointError: there is none, or the named one is damaged.
    """
    if not isinstance(resume, bool) and Path(resume).name.startswith("step_"):
        checkpoint = load_checkpoint(Path(resume))
        store.set_aside_after(checkpoint.step)
        return checkpoint
    return store.load_latest()


def restore(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    """Put a run back to where `capture` saw it; random states last.

    Raises:
        ConfigError: the run was started with another model or batch size.
        CheckpointError: the optimizer's state does not fit, or something is missing.
    """
    try:
        _restore(trainer, checkpoint)
    except DeepSeekError:
        raise
    except KeyError as error:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} lacks {error}",
            fix="resume with the settings that the run was started with",
        ) from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} is malformed: {error}",
            fix="use a checkpoint that this library wrote",
        ) from error


def _restore(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    state, step = checkpoint.state, trainer.assembly.step
    current = trainer.train_loader.batch_size
    if state["batch_size"] != current:
        raise ConfigError(
            f"batch_size={current} differs from the run's {state['batch_size']}",
            fix=f"resume with batch_size={state['batch_size']}",
        )
    restore_weights(trainer, checkpoint)
    step.scaler.load_state_dict(state["scaler"])
    step.guard.load_state_dict(state["guard"])
    step.micro_batch_size = min(step.micro_batch_size, state["micro_batch_size"])
    trainer.train_loader.load_state_dict(state["data"])
    trainer.recorder.load_state_dict(state["recorder"])
    for callback, saved in zip(trainer.callbacks, state["callbacks"], strict=False):
        callback.load_state_dict(saved)
    trainer.progress.load_state_dict(state["progress"])
    RandomState.from_json(state["random"]).restore()


def restore_weights(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    """Put weights, their average and the optimizer's state back, and nothing else.

    Raises:
        ConfigError: the checkpoint is of another model.
        CheckpointError: the optimizer's state does not fit.
    """
    step = trainer.assembly.step
    try:
        trainer.model.module.load_state_dict(checkpoint.tensors["model"])
    except RuntimeError as error:
        raise ConfigError(
            f"the checkpoint holds another model: {str(error).splitlines()[0]}",
            fix="resume with the model that the run was started with",
        ) from error
    join_state(step.optimizer, checkpoint.tensors["optimizer"], checkpoint.state["optimizer"])
    if step.ema is not None:
        step.ema.load_state_dict(checkpoint.tensors["ema"])
