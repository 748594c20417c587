"""What a compiled micro-batch keeps of its activations, and the share that the compiler is given.

What its knapsack makes of a share is known when it has compiled: it counts other tensors than are
counted operator by operator, and keeps what it must. So the graph is asked, and compiled again with
less where that is too much.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from deepseek.memory.graph_bytes import count_kept_bytes
from deepseek.trainer.console import MIB
from deepseek.trainer.host_pace import trial_batch
from deepseek.trainer.out_of_memory import is_out_of_memory
from deepseek.trainer.task import Batch

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

SLACK = 1.03
"""Of what may be kept: the compiler's own knapsack takes whole tensors."""
MAX_TRIES = 3
"""Compilations with less."""


def fit_share(trainer: "Trainer", allowed: float) -> None:
    """Lower the compiler's share until a micro-batch keeps no more than `allowed` bytes.

    In passes that leave nothing behind; only where one process computes, whose passes nobody else
    has to take part in.
    """
    step = trainer.assembly.step
    for _ in range(MAX_TRIES):
        kept = _try_once(trainer)
        if kept is None or step.graph.memory.share is None or kept <= SLACK * allowed:
            return
        step.graph.memory.share *= allowed / kept
        step.graph.forget_compiled()


def _try_once(trainer: "Trainer") -> int | None:
    """Return what a compiled micro-batch keeps; `None` where none is compiled, or fits."""
    step, found = trainer.assembly.step, []
    step.graph.on_compiled = lambda loss, batch: found.append(_count(trainer, loss, batch))
    try:
        with trial_batch(trainer, step.micro_batch_size) as batch:
            step.accumulate_once(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    finally:
        step.graph.on_compiled = None
    return found[0] if found else None


def tell_kept(
    trainer: "Trainer", allowed: float, everything: float, loss: Tensor, batch: Batch
) -> None:
    """Say what a micro-batch of the run has kept; warn if it is more than was to be kept.

    Args:
        trainer: of the run.
        allowed: bytes.
        everything: bytes of all activations, operator by operator.
        loss: of the micro-batch, before its backward pass.
        batch: the micro-batch.
    """
    kept = _count(trainer, loss, batch)
    text = (
        f"memory={trainer.config.memory}: compiled, a micro-batch keeps {kept / MIB:,.1f} MiB,"
        f" {kept / max(1.0, everything):.0%} of its activations; {allowed / MIB:,.1f} MiB were"
        " allowed"
    )
    trainer.folder.add_event(
        "memory_kept", step=trainer.step, kept_bytes=kept, allowed_bytes=round(allowed),
        message=text,
    )  # fmt: skip
    trainer.recorder.console.line(text)
    if kept > SLACK * allowed:
        is_full = trainer.assembly.step.graph.memory.name == "full"
        ways = "graph=dynamic" if is_full else "a smaller budget, memory=full, or graph=dynamic"
        trainer.warn(f"{text}. Set {ways}")


def _count(trainer: "Trainer", loss: Tensor, batch: Batch) -> int:
    parallel = trainer.assembly.step.parallel
    given = [weight.local for weight in parallel.weights.weights]
    given += [*parallel.buffers().values(), *(v for v in batch.values() if isinstance(v, Tensor))]
    return count_kept_bytes(loss, given)
