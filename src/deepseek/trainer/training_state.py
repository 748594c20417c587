"""Everything that training depends on, to a checkpoint and back."""

from pathlib import Path
from typing import TYPE_CHECKING

from deepseek.checkpoint import (
    Checkpoint,
    CheckpointStore,
    join_state,
    load_checkpoint,
    random_state,
    set_random_state,
    split_state,
)
from deepseek.errors import ConfigError

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer


def capture(trainer: "Trainer") -> Checkpoint:
    """Return the state of a run between two steps. Tensors are not copied."""
    step = trainer.assembly.step
    tensors, optimizer_rest = split_state(step.optimizer)
    state = {
        "data": trainer.train_loader.state_dict(),
        "batch_size": trainer.train_loader.batch_size,
        "optimizer": optimizer_rest,
        "scaler": step.scaler.state_dict(),
        "random": random_state(),
        "epoch_loss": trainer.epoch_loss.state_dict(),
        "records": trainer.records,
        "callbacks": [callback.state_dict() for callback in trainer.callbacks],
        "spent_s": trainer.time_s(),
    }
    return Checkpoint(trainer.step, trainer.model.module.state_dict(), tensors, state)


def find_checkpoint(store: CheckpointStore, resume: bool | str | Path) -> Checkpoint:
    """Load the checkpoint that `resume` names, or the newest whole one of the run.

    Raises:
        CheckpointError: there is none, or the named one is damaged.
    """
    if not isinstance(resume, bool) and Path(resume).name.startswith("step_"):
        return load_checkpoint(Path(resume))
    return store.load_latest()


def restore(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    """Put a run back to where `capture` saw it; random states last.

    Raises:
        ConfigError: the run was started with another model or batch size.
        CheckpointError: the optimizer's state does not fit.
    """
    state = checkpoint.state
    current = trainer.train_loader.batch_size
    if state["batch_size"] != current:
        raise ConfigError(
            f"batch_size={current} differs from the run's {state['batch_size']}",
            fix=f"resume with batch_size={state['batch_size']}",
        )
    try:
        trainer.model.module.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        raise ConfigError(
            f"the checkpoint holds another model: {str(error).splitlines()[0]}",
            fix="resume with the model that the run was started with",
        ) from error
    join_state(trainer.assembly.step.optimizer, checkpoint.optimizer, state["optimizer"])
    trainer.assembly.step.scaler.load_state_dict(state["scaler"])
    trainer.train_loader.load_state_dict(state["data"])
    trainer.epoch_loss.load_state_dict(state["epoch_loss"])
    trainer.records = state["records"]
    for callback, saved in zip(trainer.callbacks, state["callbacks"], strict=False):
        callback.load_state_dict(saved)
    trainer.spent_s = state["spent_s"]
    trainer.step = checkpoint.step
    set_random_state(state["random"])
