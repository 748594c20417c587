"""Losses of some tokens at a time: by `loss_chunks` one after another, by `cp` on several ranks."""

from deepseek.config import TrainerConfig
from deepseek.errors import ConfigError
from deepseek.memory.head import Head, find_head, why_not_apart
from deepseek.models import ModelEngine
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.plan import Plan
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
