"""When a run ends: after so many steps, or in time for its last evaluation within a budget.

Time counts from the beginning of `fit`, with evaluations and checkpoints, and over resumes: a
checkpoint holds the time that had gone when it was written. What is kept free for the end is two
evaluations (of the last weights, and of the best for the report) and a checkpoint, each as long as
the longest so far; before the first evaluation, a third of what it takes to train on as much.
"""

from math import prod
from typing import TYPE_CHECKING

from deepseek.datasets import DataLoader, infer_spec
from deepseek.trainer.progress import due

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

FORWARD_SHARE = 1 / 3
"""Of a step: the backward pass does twice the forward's work."""

FIRST_SHARE = 1e-3
"""Of the time, in the first step, whose length is not known: the warm-up begins above 0."""


class RunLength:
    """How much of a run is gone.

    Args:
        max_steps: optimizer steps of the run; `None`: the time alone decides.
        budget_s: seconds it may take; `None`: as long as the steps take.

    Attributes:
        share: of the time, 0..1, that will have gone when the next step is done; 1 and above: there
            will be no next step. The same on every rank; 0 without a budget.
    """

    def __init__(self, max_steps: int | None, budget_s: float | None) -> None:
        self.max_steps = max_steps
        self.budget_s = budget_s
        self.share = 0.0 if budget_s is None else FIRST_SHARE
        self._longest = {"evaluation": 0.0, "saving": 0.0}
        self._paused_s = 0.0
        self._began_s, self._began_step, self._evaluation_steps = 0.0, 0, 0.0

    @property
    def is_out_of_time(self) -> bool:
        """Whether the last step has been taken; nobody knew which one it would be."""
        return self.share >= 1

    def is_over(self, step: int) -> bool:
        """Return whether `step` is the last one."""
        return self.is_out_of_time or (self.max_steps is not None and step >= self.max_steps)

    def begin(self, step: int, now_s: float, evaluation_steps: float) -> None:
        """Begin, or go on, in this process.

        Args:
            step: steps taken.
            now_s: seconds that the run has taken.
            evaluation_steps: how many steps have as much data as an evaluation.
        """
        self._began_s, self._began_step = now_s, step
        self._evaluation_steps = evaluation_steps

    def note(self, what: str, seconds: float, *, pauses: bool = True) -> None:
        """Take into account how long an `evaluation` or a `saving` took.

        Args:
            what: one of the two.
            seconds: how long.
            pauses: whether training waited meanwhile.
        """
        self._longest[what] = max(self._longest[what], seconds)
        self._paused_s += seconds if pauses else 0.0

    def look(self, step: int, now_s: float, evaluates: bool) -> float:
        """Return what `share` is by this rank's clock, at the end of a step.

        Args:
            step: steps taken, this one counted.
            now_s: seconds that the run has taken.
            evaluates: whether an evaluation follows.
        """
        if self.budget_s is None:
            return 0.0
        trained_s = now_s - self._began_s - self._paused_s
        step_s = max(0.0, trained_s) / max(1, step - self._began_step)
        evaluation_s = self._longest["evaluation"]
        if evaluation_s == 0:
            evaluation_s = FORWARD_SHARE * step_s * self._evaluation_steps
        # an evaluation that follows is one of the two at the end if this is the last step
        kept_free_s = (3 if evaluates else 2) * evaluation_s + self._longest["saving"]
        allowed_s = self.budget_s - kept_free_s
        done_s = now_s + step_s
        return 1.0 if done_s >= allowed_s else max(self.share, done_s / allowed_s)

    def state_dict(self) -> dict:
        """Return what a resumed run goes on from; JSON-able."""
        return {"budget_s": self.budget_s, "share": self.share, "longest": dict(self._longest)}

    def load_state_dict(self, state: dict) -> None:
        """Take the state back; where the budget has changed, the share follows the new one."""
        self._longest = dict(state["longest"])
        if self.budget_s is not None and state["budget_s"] is not None:
            self.share = state["share"] * state["budget_s"] / self.budget_s


def begin_length(trainer: "Trainer") -> None:
    """Let the clock of a run begin, and its steps ask it."""
    train, val = trainer.train_loader, trainer.val_loader
    size = 0.0
    if trainer.config.time_budget is not None and val is not None:
        larger = _sample_numel(val) / _sample_numel(train)
        size = val.num_samples / train.batch_size * larger
    trainer.assembly.length.begin(trainer.step, trainer.recorder.time_s(), size)
    trainer.assembly.step.look_at_clock = lambda: _share_gone(trainer)


def _sample_numel(loader: DataLoader) -> int:
    field = infer_spec(loader.dataset).fields.get("inputs")
    return 1 if field is None else prod(field.shape)  # rows of a table are alike


def _share_gone(trainer: "Trainer") -> float:
    """Return the share of the time that is gone, at the end of the step under way."""
    loader, step = trainer.train_loader, trainer.step + 1
    ends_epoch = loader.position >= loader.num_samples
    evaluates = trainer.val_loader is not None and due(step, trainer.config.eval_every, ends_epoch)
    return trainer.assembly.length.look(step, trainer.recorder.time_s(), evaluates)
