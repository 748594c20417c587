"""The average of the weights of a run's best evaluations.

Papers: Izmailov et al. 2018 (SWA), arXiv 1803.05407; Wortsman et al. 2022 (model soups), arXiv
2203.05482, of which this is the uniform soup of one run. Departure: whole numbers in buffers are
those of the best member. The average becomes the model of the run only where it is at least as good
as the best.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deepseek.checkpoint import StoredTensors
from deepseek.models.model_file import read_model_file, write_model_file
from deepseek.parallel.apply import ParallelModel
from deepseek.trainer.callbacks import BestModel, Callback, monitored
from deepseek.trainer.evaluation import keep_min_score
from deepseek.trainer.growing import lent_tables
from deepseek.trainer.model_saving import save_model
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
            if trainer.world.is_main:
                self._path(trainer, 0).parent.mkdir(exist_ok=True)
            trainer.save_model(self._path(trainer, trainer.step))

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Average, and take the average where it is at least as good as the best."""
        paths = [self._path(trainer, step) for _, step in self.kept]
        if len(paths) < 2 or not all(path.is_file() for path in paths):
            return
        averaged = self._path(trainer, 0).with_name("average.bin")
        if trainer.world.is_main:
            average_models(paths, averaged)
        trainer.world.exchange(None)  # the file is there
        parallel = trainer.trained  # asked again, it would take the buffers of the last step
        with weights_of(parallel, averaged):
            metrics = trainer._evaluation(None, keeps_samples=False, parallel=parallel).metrics
            if trainer.task.min_score_metric is not None:
                keep_min_score(trainer.task, metrics, parallel.engine)
                save_model(parallel, averaged)
        value = metrics[self._best.monitor.removeprefix("val_")]
        best = self.kept[0][0]
        self.is_used = value >= best if self._best.higher_is_better else value <= best
        if trainer.world.is_main:
            if self.is_used:
                averaged.replace(trainer.folder.model)
            # with what a killed run has left there
            shutil.rmtree(averaged.parent, ignore_errors=True)
        trainer.folder.add_event(
            "average", step=trainer.step, steps=[step for _, step in self.kept], best=best,
            average=value, is_used=self.is_used,
        )  # fmt: skip

    def _path(self, trainer: "Trainer", step: int) -> Path:
        return trainer.folder.path / FOLDER / f"step_{step}.bin"

    def state_dict(self) -> dict:
        """Return the values and steps."""
        return {"kept": self.kept}

    def load_state_dict(self, state: dict) -> None:
        """Take them back."""
        self.kept = [(float(value), int(step)) for value, step in state["kept"]]


def average_models(paths: list[Path], target: Path) -> None:
    """Write the mean of the floating-point weights of model files of one architecture.

    Args:
        paths: of the files; the first gives all that is not averaged.
        target: of the mean.
    """
    first, *others = (read_model_file(path) for path in paths)
    averaged: set[int] = set()
    for name, weight in first.state.items():
        if weight.is_floating_point() and id(weight) not in averaged:  # names may share a tensor
            stacked = torch.stack([weight, *(other.state[name] for other in others)])
            weight.copy_(stacked.double().mean(0))
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
