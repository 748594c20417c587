"""What a model is worth on samples that were not used to quantise it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from deepseek.datasets.spec import DataSpec
from deepseek.deploy.report.quantity import is_higher_better
from deepseek.deploy.samples import Samples
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.joint_outputs import is_number, join_outputs
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.world import World
from deepseek.trainer.evaluation_pass import evaluate
from deepseek.trainer.metrics import Mean, Metric
from deepseek.trainer.precision import Precision
from deepseek.trainer.regression import RegressionTask
from deepseek.trainer.task import TASKS, Task, resolve_task

COSINE = "cosine"
EXPLAINED = "r2"
"""Of the original's numbers: the cosine of one number to another is no more than its sign."""


class Judge:
    """Measures a metric of a model, higher is better: of its task, or how near the original it is.

    Near is the cosine of outputs; of a model that gives numbers, R2 with the original's as targets.

    Args:
        engine: the original.
        samples: where they have labels, the metric is one of their task.
        held_out_only: whether samples that are for calibration are left out.
        metric: its name; `None`: the one the task is judged by. `cosine`: beside the original.

    Raises:
        ConfigError: there is no such metric, lower is better, or the labels are of other classes.
    """

    def __init__(
        self, engine: ModelEngine, samples: Samples, held_out_only: bool, metric: str | None
    ) -> None:
        self._engine, self._samples, self._held_out_only = engine, samples, held_out_only
        self._task: Task | None = None
        self.metric = COSINE
        spec = samples.spec
        if spec is not None and spec.task in TASKS and metric != COSINE:
            self._task = resolve_task("auto", _spec_of_task(engine, spec), 0.0)
            self.metric = _choose_metric(self._task, metric)
        elif metric not in (None, COSINE):
            raise ConfigError(
                f"metric={metric!r} cannot be measured: the data have no labels",
                fix="give labelled data, or leave metric out",
            )
        elif metric is None and _gives_numbers(engine, samples):
            self.metric = EXPLAINED

    @property
    def counts_samples(self) -> bool:
        """Whether the metric is of the data's labels, so that a sample may be worth 1/N of it."""
        return self._task is not None

    @property
    def num_samples(self) -> int:
        """Samples that it measures on."""
        samples = self._samples
        return samples.num_held_out if self._held_out_only else len(samples)

    def measure(self, engine: ModelEngine) -> float:
        """Return the metric of a model."""
        batches = self._samples.batches(self._held_out_only)
        if self._task is None:
            return self._nearness(engine, batches)
        device = engine.device
        parallel = ParallelModel(engine, World.alone(device))
        exact = Precision("fp32", device.type, "to compare")
        return evaluate(parallel, batches, self._task, exact, False).metrics[self.metric]

    def _nearness(self, engine: ModelEngine, batches: Iterator[dict[str, Tensor]]) -> float:
        task = RegressionTask()
        found: dict[str, Metric] = {COSINE: Mean(), **task.new_metrics()}
        with evaluating(engine), evaluating(self._engine), torch.no_grad():
            for batch in batches:
                inputs = batch["inputs"].to(engine.device)
                want, own = (
                    join_outputs(each(inputs)).float().flatten(1) for each in (self._engine, engine)
                )
                if self.metric == EXPLAINED:
                    task.update_metrics(found, own, {"targets": want})
                else:
                    found[COSINE].update(torch.cosine_similarity(want, own).sum(), len(inputs))
        return found[self.metric].compute()


def _gives_numbers(engine: ModelEngine, samples: Samples) -> bool:
    """Return whether outputs are numbers, and not classes or a vector of which the angle tells."""
    if engine.spec is not None and is_number(engine.spec):
        return True
    if engine.num_classes is not None:
        return engine.num_classes == 1
    inputs = next(samples.first(1))["inputs"].to(engine.device)
    with evaluating(engine), torch.no_grad():
        return join_outputs(engine(inputs)).flatten(1).shape[1] == 1


def _choose_metric(task: Task, metric: str | None) -> str:
    best = task.monitor.removeprefix("val_")
    watched = (best,) if task.higher_is_better else ()
    known = [name for name in task.new_metrics() if is_higher_better(name) or name in watched]
    if metric is None:
        metric = best if best in known else next(iter(known), COSINE)
    if metric not in known:
        raise ConfigError(
            f"metric={metric!r} is no metric of this data that is better where it is higher",
            fix=f"choose one of: {', '.join([*known, COSINE])}",
        )
    return metric


def _spec_of_task(engine: ModelEngine, spec: DataSpec) -> DataSpec:
    """Return the spec that says which classes there are: the data's, if they are the model's."""
    own = engine.spec
    if not spec.num_classes or engine.num_classes is None:
        return spec
    # a plain torch data set numbers the classes it has; the model may know more, and by name
    is_unnamed = spec.class_names == tuple(map(str, range(spec.num_classes)))
    if is_unnamed and own is not None and spec.num_classes <= own.num_classes:
        return own
    if spec.num_classes != engine.num_classes:
        raise ConfigError(
            f"the model has num_classes={engine.num_classes}, the data {spec.num_classes} classes",
            fix="give data with the classes the model was trained on",
        )
    if own is not None and own.class_names and own.class_names != spec.class_names:
        pairs = zip(own.class_names, spec.class_names, strict=True)
        name, other = next((a, b) for a, b in pairs if a != b)
        raise ConfigError(
            f"the data have the class {other!r} where the model has {name!r}",
            fix="give data with the classes the model was trained on, in the same order",
        )
    return spec
