"""When a checkpoint is written, which ones stay, and what happens where it fails.

A save that fails is reported and training goes on: the earlier checkpoints are intact, and the
next save tries again.
"""

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from deepseek.checkpoint import BackgroundSaver, CheckpointStore, Crew
from deepseek.errors import CheckpointError
from deepseek.trainer.callbacks import is_better
from deepseek.trainer.guard import BadStep
from deepseek.trainer.training_state import capture

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer


class Saving:
    """Writes the checkpoints of a run.

    Args:
        trainer: whose state is saved.
    """

    def __init__(self, trainer: "Trainer") -> None:
        config = trainer.config
        self._trainer = trainer
        world = trainer.world
        timeout_s = config.parallel.start_timeout_s
        crew = Crew(world.rank, world.size, world.store(), timeout_s, world.name)
        self.store = CheckpointStore(
            trainer.folder.checkpoints, config.keep_checkpoints, config.keep_every, crew
        )
        self._saver = BackgroundSaver(self.store)
        self._last: tuple[int, bool, Path] | None = None  # step, is_complete, folder

    def find_bad(self) -> BadStep | None:
        """Return what must not be saved: a weight or state that is not finite."""
        step = self._trainer.assembly.step
        return step.guard.judge_state(step.ema.named() if step.ema else {})

    def save(self) -> Path:
        """Write a checkpoint now, unless the state has not changed since the last one.

        Raises:
            CheckpointError: it could not be written, or the state is not finite.
        """
        trainer = self._trainer
        trainer.world.mark("a checkpoint")
        self.wait()
        now = (trainer.step, trainer.progress.is_complete)
        if self._last is not None and self._last[:2] == now and self._last[2].is_dir():
            return self._last[2]
        if (bad := self.find_bad()) is not None:
            raise CheckpointError(f"step {trainer.step} is not saved: {bad.detail}")
        path = self.store.save(capture(trainer), self._steps_to_keep())
        self._note_saved(*now, path)
        return path

    def save_in_background(self, metrics: dict[str, float]) -> None:
        """Begin to write a checkpoint; `metrics` of this step decide whether it is the best."""
        trainer = self._trainer
        began = perf_counter()
        self.wait()
        if trainer.config.keep_best and trainer.monitor in metrics:
            value, best = metrics[trainer.monitor], trainer.progress.best_checkpoint
            if is_better(value, best and best[0], trainer.higher_is_better):
                trainer.progress.best_checkpoint = (value, trainer.step)
        self._saver.save(capture(trainer), self._steps_to_keep())
        trainer.recorder.pause(began)
        trainer.assembly.length.note("saving", perf_counter() - began)

    def save_to_leave(self) -> str:
        """Save before the run ends; say in words what came of it."""
        try:
            path = self.save()
        except CheckpointError as error:
            self._trainer.warn(error.message)
            return f"{error.message}; earlier checkpoints are intact"
        return f"step {self._trainer.step} is saved in {path}"

    def wait(self) -> None:
        """Wait for the checkpoint that is being written; report it if that failed.

        Raises:
            CheckpointError: another group of processes goes on with this run.
        """
        try:
            path = self._saver.wait()
        except CheckpointError as error:
            if self.store.is_replaced():
                raise
            self._trainer.warn(error.message)
            return
        if path is not None:
            self._trainer.assembly.length.note("saving", self._saver.took_s, pauses=False)
            self._note_saved(int(path.name.removeprefix("step_")), True, path)

    def give_up(self) -> None:
        """Wait no longer for the other ranks to finish a checkpoint: this one has failed."""
        self.store.crew.give_up()

    def close(self) -> None:
        """Wait, and end the writing thread; a save that fails is told, and hides no other error."""
        try:
            self.wait()
        except CheckpointError:
            pass  # it was told before
        except Exception as error:
            self._trainer.warn(f"a checkpoint could not be saved: {type(error).__name__}: {error}")
        self._saver.close()

    def _steps_to_keep(self) -> list[int]:
        best = self._trainer.progress.best_checkpoint
        return [best[1]] if best else []

    def _note_saved(self, step: int, is_complete: bool, path: Path) -> None:
        self._last = (step, is_complete, path)
        self._trainer.folder.add_event("save", step=step)
