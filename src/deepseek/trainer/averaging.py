"""The average of the weights of a run's best evaluations.

Papers: Izmailov et al. 2018 (SWA), arXiv 1803.05407; Wortsman et al. 2022 (model soups), arXiv
2203.05482, of which this is the uniform soup of one run. Departure: whole numbers in buffers are
those of the best member. The average becomes the model of the run only where it is at least as good
as the best.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deepseek.checkpoint import StoredTensors
from deepseek.errors import CheckpointError
from deepseek.models.model_file import read_model_file, write_model_file
from deepseek.parallel.apply import ParallelModel
from deepseek.trainer.callbacks import BestModel, Callback, monitored
from deepseek.trainer.evaluation import keep_min_score
from deepseek.trainer.growing import lent_tables
from deepseek.trainer.model_saving import attempt, save_model
from deepseek.trainer.training_state import fill_model

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

FOLDER = "best"


class AverageBest(Callback):
    """Keeps the models of the best evaluations and averages them at the end.

    Args:
        count: evaluations, at least 2.
        best: keeps the best of them as the model of the run.
    """

    def __init__(self, count: int, best: BestModel) -> None:
        self.count = count
        self._best = best
        self.kept: list[tuple[float, int]] = []
        self.is_used = False
        """Whether the model of the run is the average."""

    def on_fit_begin(self, trainer: "Trainer") -> None:
        """Forget the models that are gone: a finished run that gets more epochs has used them."""
        steps = trainer.world.lead(
            lambda: [step for _, step in self.kept if self._path(trainer, step).is_file()]
        )
        self.kept = [(value, step) for value, step in self.kept if step in steps]

    def on_eval_end(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """Keep the model if it is among the best so far."""
        value = monitored(metrics, self._best.monitor)
        if value != value:
            return
        sign = -1 if self._best.higher_is_better else 1
        ranked = sorted([*self.kept, (value, trainer.step)], key=lambda each: sign * each[0])
        for _, step in ranked[self.count :]:
            if step != trainer.step and trainer.world.is_main:
                self._path(trainer, step).unlink(missing_ok=True)
        self.kept = ranked[: self.count]
        if any(step == trainer.step for _, step in self.kept):
            try:
                self._keep(trainer)
            except OSError as error:
                self.kept.remove((value, trainer.step))
                trainer.warn(f"the model could not be kept for average_best: {error}")

    def _keep(self, trainer: "Trainer") -> None:
        _on_first(trainer, lambda: self._folder(trainer).mkdir(exist_ok=True))
        trainer.save_model(self._path(trainer, trainer.step))

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Average, and take the average where it is at least as good as the best."""
        try:
            if len(self.kept) > 1:
                self._average(trainer)
        except (OSError, CheckpointError) as error:  # the best model is written
            trainer.warn(f"the best models could not be averaged: {error}")
        if trainer.world.is_main:
            # with what a killed run has left there
            shutil.rmtree(self._folder(trainer), ignore_errors=True)

    def _average(self, trainer: "Trainer") -> None:
        paths = [self._path(trainer, step) for _, step in self.kept]
        averaged = self._folder(trainer) / "average.bin"
        _on_first(trainer, lambda: average_models(paths, averaged))
        parallel = trainer.trained  # asked again, it would take the buffers of the last step
        with weights_of(parallel, averaged):
            metrics = trainer._evaluation(None, keeps_samples=False, parallel=parallel).metrics
            if trainer.task.min_score_metric is not None:
                keep_min_score(trainer.task, metrics, parallel.engine)
                save_model(parallel, averaged)
        value = metrics[self._best.monitor.removeprefix("val_")]
        # of the run before, where it got more epochs
        best = self.kept[0][0] if self._best.best is None else self._best.best
        is_used = value >= best if self._best.higher_is_better else value <= best
        if is_used:
            _on_first(trainer, lambda: averaged.replace(trainer.folder.model))
        self.is_used = is_used
        trainer.folder.add_event(
            "average", step=trainer.step, steps=[step for _, step in self.kept], best=best,
            average=value, is_used=is_used,
        )  # fmt: skip

    def _folder(self, trainer: "Trainer") -> Path:
        return trainer.folder.path / FOLDER

    def _path(self, trainer: "Trainer", step: int) -> Path:
        return self._folder(trainer) / f"step_{step}.bin"

    def state_dict(self) -> dict:
        """Return the values and steps."""
        return {"kept": self.kept}

    def load_state_dict(self, state: dict) -> None:
        """Take them back."""
        self.kept = [(float(value), int(step)) for value, step in state["kept"]]


def _on_first(trainer: "Trainer", act: Callable[[], object]) -> None:
    """Let rank 0 act; what the disk refuses, every rank raises as an OSError."""
    if problems := attempt(trainer.world, act, is_led=True):
        raise OSError(problems[0])


def average_models(paths: list[Path], target: Path) -> None:
    """Write the mean of the weights of model files of one architecture.

    Args:
        paths: of the files; the first gives all that is not averaged.
        target: of the mean.
    """
    first, *others = (read_model_file(path) for path in paths)
    averaged: set[int] = set()
    for name, weight in first.state.items():
        is_averaged = weight.is_floating_point() or weight.is_complex()
        if is_averaged and id(weight) not in averaged:  # names may share a tensor
            stacked = torch.stack([weight, *(other.state[name] for other in others)])
            weight.copy_(stacked.to(torch.promote_types(weight.dtype, torch.float64)).mean(0))
            averaged.add(id(weight))
    write_model_file(target, first)


@contextmanager
def weights_of(parallel: ParallelModel, path: Path) -> Iterator[None]:
    """Compute with the weights of a model file for a while."""
    kept = [(part.tensor, part.tensor.clone()) for part in parallel.parts()]
    try:
        stored = StoredTensors([path])
        fill_model(parallel.parts(), stored)
        with lent_tables(parallel.engine.module, stored):
            yield
    finally:
        for tensor, before in kept:
            tensor.copy_(before)
