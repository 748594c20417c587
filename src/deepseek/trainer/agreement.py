"""Ranks leave together: a signal or a wish to stop on one of them counts once all know of it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from deepseek.trainer.signals import StopSignals

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer


def agree_to_stop(trainer: "Trainer", signals: StopSignals) -> None:
    """Take from the other ranks why the run is to end: a signal, or a reason in words."""
    number = signals.received if signals.is_pending else None
    wishes = trainer.world.exchange([number, trainer.wish])
    asked = [number for number, _ in wishes if number is not None]
    reasons = [reason for _, reason in wishes if reason is not None]
    if asked:
        signals.take(asked[0])
    if reasons:
        trainer.stop_reason = reasons[0]


def agree_if_asked(trainer: "Trainer", signals: StopSignals) -> None:
    """Let all ranks know of what any of them wants; all call it."""
    world = trainer.world
    if world.is_distributed and world.any(signals.is_pending or trainer.wish is not None):
        agree_to_stop(trainer, signals)


def stop_check(trainer: "Trainer", signals: StopSignals) -> Callable[[], None]:
    """Return what is called between the batches of an evaluation; it raises `StopRequested`."""

    def check() -> None:
        agree_if_asked(trainer, signals)
        signals.check()

    return check
