"""What is done about a bad step: abort, skip the batch, or roll back and go on past it.

Each is written to `events.jsonl` before anything else happens. A resumed run reads them back and
does the same at the same step, also where the cause (a cosmic ray, a flaky disk) does not return.
"""

from typing import TYPE_CHECKING

from deepseek.errors import CheckpointError, DivergedError
from deepseek.trainer.guard import BadStep, Policy
from deepseek.trainer.run_folder import RunFolder
from deepseek.trainer.training_state import find_checkpoint, restore_weights

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

EVENT = "bad_step"
FIXES = {
    "batch": "look at that sample, or set on_bad_step=skip",
    "spike": "lower lr, lengthen warmup, or set on_bad_step=skip",
    "weights": "resume from the last checkpoint, or set on_bad_step=rollback",
    "optimizer": "resume from the last checkpoint, or set on_bad_step=rollback",
}
FIX = "lower lr, lengthen warmup, look for outliers in the data, or set on_bad_step=rollback"


class BadSteps:
    """Carries out the policy.

    Args:
        policy: `abort`, `skip` or `rollback`; a damaged state is rolled back where the policy says
            skip.
        max_in_a_row: more bad steps than this without a good one end the run.
    """

    def __init__(self, policy: Policy, max_in_a_row: int) -> None:
        self.policy: Policy = policy
        self.max_in_a_row = max_in_a_row
        self._replayed: dict[int, BadStep] = {}

    def read_journal(self, folder: RunFolder, step: int) -> None:
        """Take what was decided at and after `step`, to decide it again."""
        for event in folder.read_events():
            if event.get("kind") == EVENT and event["step"] >= step and event["action"] != "abort":
                self._replayed[event["step"]] = BadStep(
                    "replayed", event["detail"], event["action"]
                )

    def replayed(self, step: int) -> BadStep | None:
        """Return the bad step that the journal holds for step number `step`, from 0."""
        return self._replayed.pop(step, None) if self._replayed else None

    def handle(self, trainer: "Trainer", bad: BadStep, step: int) -> None:
        """Act on a bad step that changed nothing.

        Raises:
            DivergedError: the policy is to abort, there are too many, or nothing to go back to.
        """
        action = bad.action or self._choose(trainer, bad)
        if bad.kind != "replayed":
            trainer.folder.add_event(
                EVENT, step=step, cause=bad.kind, detail=bad.detail, action=action
            )
        if action == "abort":
            raise DivergedError(
                f"step {step + 1}: {bad.detail}: training diverged"
                f" (lr={trainer.assembly.step.optimizer.param_groups[0]['lr']:.3g})",
                fix=FIXES.get(bad.kind, FIX),
            )
        done = "the batch is skipped"
        if action == "rollback":
            done = self._roll_back(trainer, bad, step)
        trainer.recorder.console.line(f"step {step + 1}: {bad.detail}; {done}")

    def _choose(self, trainer: "Trainer", bad: BadStep) -> str:
        if trainer.progress.num_bad_in_a_row > self.max_in_a_row:
            return "abort"
        if bad.is_lasting and self.policy == "skip":
            return "rollback"
        return self.policy

    def _roll_back(self, trainer: "Trainer", bad: BadStep, step: int) -> str:
        try:
            trainer.saving.wait()
            checkpoint = find_checkpoint(trainer.saving.store, True, trainer.world)
            restore_weights(trainer, checkpoint)
        except CheckpointError as error:
            if not bad.is_lasting:  # it changed nothing: the state before it is as good
                return "nothing is saved yet, the batch is skipped"
            raise DivergedError(
                f"step {step + 1}: {bad.detail}, and there is nothing to roll back to:"
                f" {error.message}",
                fix="set checkpoint_every, or lower lr",
            ) from error
        return f"weights and optimizer are those of step {checkpoint.step} again"
