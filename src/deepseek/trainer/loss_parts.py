"""Losses of some tokens at a time: by `loss_chunks` one after another, by `cp` on several ranks."""

from deepseek.config import TrainerConfig
from deepseek.errors import ConfigError
from deepseek.memory.head import Head, find_head, why_not_apart
from deepseek.models import ModelEngine
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.plan import Plan
from deepseek.parallel.world import World
from deepseek.trainer.precision import Precision
from deepseek.trainer.task import Task


def check_parts(task: Task, engine: ModelEngine, config: TrainerConfig, plan: Plan) -> None:
    """Check that a loss can be taken of some tokens at a time, where the settings ask for it.

    Args:
        task: of the run.
        engine: whole, as `ParallelModel` finds it.
        config: of the run.
        plan: of the run.

    Raises:
        ConfigError: the task needs all tokens, or the model has no head that can be left out.
    """
    cut = {"loss_chunks": config.loss_chunks, "cp": plan.cp}
    for name, count in cut.items():
        if count > 1 and not task.takes_parts:
            raise ConfigError(
                f"{name}={count} takes the loss of some tokens at a time, and"
                f" {type(task).__name__} needs whole sequences",
                fix=f"leave {name} out",
            )
    if config.loss_chunks == 1:
        return
    head = find_head(engine.module, engine.hints.head)
    why = "it has no head of its own for each token"
    if head is not None:
        why = why_not_apart(engine.module, head)
    if why:
        raise ConfigError(
            f"loss_chunks={config.loss_chunks} leaves the head of {engine.architecture} out: {why}",
            fix="remove loss_chunks; memory=full, or smaller micro-batches (grad_accum_steps), need"
            " less memory with any model",
        )


def head_here(parallel: ParallelModel) -> Head | None:
    """Return the head on this rank; `None` without one, or where another rank of `pp` has it."""
    names = parallel.engine.hints.head
    if parallel.pipeline is None:
        return find_head(parallel.engine.module, names)
    last = next((stage for stage in parallel.pipeline.stages if stage.is_last), None)
    return None if last is None else find_head(last.model, names)


def compiles_loss(config: TrainerConfig, world: World, precision: Precision) -> bool:
    """Return whether the loss of a part is compiled where the rest is not.

    What is compiled rounds otherwise, and takes a while before the first step. Several processes
    may divide the head, and fp8 has layers of its own: that has not been tried.

    Raises:
        ConfigError: it is asked for where it cannot be.
    """
    given, is_alone = config.compile_loss, not world.is_distributed and precision.name != "fp8"
    if given is True and not (is_alone and config.loss_chunks > 1):
        raise ConfigError(
            f"compile_loss=true with loss_chunks={config.loss_chunks},"
            f" precision={precision.name} and {world.size} processes: the loss of a part is"
            " compiled where there are parts, of one process, and not in fp8",
            fix="set compile_loss to auto, or loss_chunks to 2 or more",
        )
    if given != "auto" or not is_alone or config.loss_chunks == 1:
        return bool(given is True)
    is_fixed = not config.deterministic and config.sequence_length_ramp is None
    return is_fixed and world.device.type == "cuda"
