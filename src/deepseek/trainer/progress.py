"""How far a run is, and what of it will have to be done again in the same way."""

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass
class RunProgress:
    """Counts of a run; part of every checkpoint.

    Attributes:
        step: optimizer steps taken, bad ones counted.
        is_complete: whether evaluation and the end of an epoch that are due after `step` are done.
        num_bad_in_a_row: bad steps since the last good one.
        best_checkpoint: (monitored metric, step) of the best checkpoint.
    """

    step: int = 0
    is_complete: bool = True
    num_bad_in_a_row: int = 0
    best_checkpoint: tuple[float, int] | None = None

    def state_dict(self) -> dict:
        """Return the counts; JSON-able."""
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        """Take the counts."""
        self.step = state["step"]
        self.is_complete = state["is_complete"]
        self.num_bad_in_a_row = state["num_bad_in_a_row"]
        best = state["best_checkpoint"]
        self.best_checkpoint = None if best is None else (best[0], best[1])


def due(step: int, every: int | Literal["epoch"] | None, ends_epoch: bool) -> bool:
    """Return whether something is done after a step: every so many, or at an epoch's end."""
    if every is None:
        return False
    return ends_epoch if every == "epoch" else step % every == 0
