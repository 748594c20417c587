"""Everything that training depends on, to a checkpoint and back."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from deepseek.checkpoint import (
    Checkpoint,
    CheckpointStore,
    RandomState,
    StoredTensors,
    join_state,
    open_checkpoint,
    split_state,
    verify_checkpoint,
)
from deepseek.errors import CheckpointError, ConfigError, DeepSeekError
from deepseek.models.growing_table import growing_tables
from deepseek.models.tensor_part import TensorPart
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.world import World
from deepseek.trainer.growing import load_tables, table_tensors

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer


def capture(trainer: "Trainer") -> Checkpoint:
    """Return the state of a run at its last step boundary. Tensors are not copied."""
    step, boundary = trainer.assembly.step, trainer.assembly.step.boundary
    weights = step.parallel.weights
    optimizer, optimizer_rest = split_state(step.optimizer, weights.named_trained(), weights.cut)
    is_main = step.parallel.world.is_main  # the others hold the same tables
    tables = table_tensors(step.engine.module) if is_main else {}
    tensors = {
        "model": _written(step.parallel.parts(boundary.buffers())) | tables,
        "optimizer": _written(optimizer),
    }
    if step.ema is not None:
        averaged = step.ema.average.weights.weights
        tensors["ema"] = _written(p for w in averaged for p in w.parts(w.local.detach()))
    state = {
        "data": boundary.data if boundary.is_open else trainer.train_loader.state_dict(),
        "batch_size": trainer.train_loader.batch_size,
        "micro_batch_size": step.micro_batch_size,
        "plan": step.parallel.world.plan.describe(),
        "scaler": step.scaler.state_dict(),
        "guard": step.guard.state_dict(),
        "weighting": {} if step.joint is None else step.joint.state_dict(),
        "recorder": trainer.recorder.state_dict(),
        "callbacks": [callback.state_dict() for callback in trainer.callbacks],
        "progress": trainer.progress.state_dict(),
        "length": trainer.assembly.length.state_dict(),
    }
    own_state = {
        "random": (boundary.random if boundary.is_open else RandomState.read()).to_json(),
        "optimizer": optimizer_rest,
    }
    return Checkpoint(trainer.progress.step, tensors, state, own_state)


def _written(parts: Iterable[TensorPart]) -> dict[str, Tensor]:
    return {part.key: part.tensor for part in parts if part.is_written}


def find_checkpoint(store: CheckpointStore, resume: bool | str | Path, world: World) -> Checkpoint:
    """Open the checkpoint that `resume` names, or the newest whole one of the run.

    Rank 0 verifies it and decides for all.

    Raises:
        CheckpointError: there is none, or the named one is damaged.
    """

    def decide() -> str:
        if isinstance(resume, bool) or not Path(resume).name.startswith("step_"):
            return str(store.find_latest())
        verify_checkpoint(Path(resume))
        return str(resume)

    return open_checkpoint(Path(world.lead(decide)))


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
    if step.joint is not None:
        step.joint.load_state_dict(state["weighting"])
    world = step.parallel.world
    if not world.is_distributed and state["plan"] == world.plan.describe():
        step.micro_batch_size = min(step.micro_batch_size, state["micro_batch_size"])
    trainer.train_loader.load_state_dict(state["data"])
    trainer.recorder.load_state_dict(state["recorder"])
    for callback, saved in zip(trainer.callbacks, state["callbacks"], strict=False):
        callback.load_state_dict(saved)
    trainer.progress.load_state_dict(state["progress"])
    trainer.assembly.length.load_state_dict(state["length"])
    if state["plan"] == world.plan.describe():
        RandomState.from_json(checkpoint.own_state[str(world.rank)]["random"]).restore()
    else:  # another layout has other streams: begun anew, from seed and step
        world.seed(trainer.config.seed + 7919 * (1 + checkpoint.step))


def restore_weights(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    """Put weights, their average and the optimizer's state back, and nothing else.

    Raises:
        ConfigError: the checkpoint is of another model.
        CheckpointError: the optimizer's state does not fit.
    """
    step = trainer.assembly.step
    weights = step.parallel.weights
    _refuse_left_over(step.parallel, checkpoint.tensors["model"])
    fill_model(step.parallel.parts(), checkpoint.tensors["model"])
    load_tables(step.engine.module, checkpoint.tensors["model"])
    rests = [own["optimizer"] for own in checkpoint.own_state.values()]
    rest = {
        "scalars": {name: v for each in rests for name, v in each["scalars"].items()},
        "param_groups": max((each["param_groups"] for each in rests), key=len),
    }
    stored = _stored(checkpoint.tensors["optimizer"])
    join_state(
        step.optimizer, weights.named_trained(), weights.cut, stored, rest,
        stays_on_host=trainer.config.offload == "optimizer",
    )  # fmt: skip
    if step.ema is not None:
        averaged = step.ema.average.weights.weights
        parts = [part for w in averaged for part in w.parts(w.local.detach())]
        fill_model(parts, checkpoint.tensors["ema"])


def _refuse_left_over(parallel: ParallelModel, stored: Mapping[str, Tensor]) -> None:
    """Refuse stored weights that no rank has a place for.

    Raises:
        ConfigError: there are some: those of more blocks, for one.
    """
    known = {*parallel.whole_names, *parallel.whole_names.values()}
    known |= {part.place.name for part in parallel.parts()}
    growing = tuple(f"{name}." for name in growing_tables(parallel.engine.module))
    left = [name for name in stored if name not in known and not name.startswith(growing)]
    if left:
        raise ConfigError(
            f"the checkpoint holds another model: {len(left)} of its weights are not in this one"
            f" ({', '.join(left[:3])}{', ...' if len(left) > 3 else ''})",
            fix="resume with the model that the run was started with",
        )


def fill_model(parts: Iterable[TensorPart], tensors: Mapping[str, Tensor]) -> None:
    """Write stored weights into a model's.

    Raises:
        ConfigError: they are those of another model.
    """
    stored, parts = _stored(tensors), list(parts)
    wanted = {part.place.name: part.place.shape for part in parts}
    missing = [name for name in wanted if name not in stored]
    other = [
        f"{name} of shape {stored.shape(name)} instead of {shape}"
        for name, shape in wanted.items()
        if name in stored and stored.shape(name) != shape
    ]
    if missing or other:
        named = [f"it has no {name}" for name in missing[:2]] + other[:2]
        raise ConfigError(
            f"the checkpoint holds another model: {', '.join(named)}",
            fix="resume with the model that the run was started with",
        )
    for part in parts:
        stored.fill(part)


def _stored(tensors: Mapping[str, Tensor]) -> StoredTensors:
    if not isinstance(tensors, StoredTensors):
        raise TypeError(f"{type(tensors).__name__} was not loaded from a checkpoint")
    return tensors
