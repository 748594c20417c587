"""What a model is worth on samples that were not used to quantise it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from deepseek.datasets import DataLoader, infer_spec
from deepseek.datasets.evaluation_view import evaluation_dataset
from deepseek.datasets.spec import DataSpec
from deepseek.errors import ConfigError, DataError
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.world import World
from deepseek.trainer.evaluation_pass import evaluate
from deepseek.trainer.metrics import Mean
from deepseek.trainer.precision import Precision
from deepseek.trainer.task import TASKS, Task, resolve_task

COSINE = "cosine"
LEAST_SAMPLES = 8
"""Fewer say too little of what goes into a layer."""


class Samples:
    """Samples in an order that is random and always the same: the first are for calibration.

    Args:
        data: a data set, a bound `DataLoader`, or batches (B, ...) of inputs.
        batch_size: samples at a time.
        num_calibration: samples for calibration at most; never more than half of all.

    Raises:
        DataError: they are too few.
    """

    def __init__(self, data, batch_size: int, num_calibration: int) -> None:
        self.spec: DataSpec | None = None
        if isinstance(data, Tensor) or (isinstance(data, Sequence) and _are_tensors(data)):
            inputs = data if isinstance(data, Tensor) else torch.cat(list(data))
            order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
            dataset = TensorDataset(inputs[order])
        else:
            dataset = evaluation_dataset(data)
            self.spec = infer_spec(dataset)  # pyright: ignore[reportArgumentType]
        count = len(dataset)  # pyright: ignore[reportArgumentType]
        if count < LEAST_SAMPLES:
            raise DataError(
                f"{count} samples are too few to calibrate with",
                fix=f"give {LEAST_SAMPLES} or more",
            )
        self._num_calibration = min(num_calibration, count // 2)
        recipe = DataLoader(batch_size=min(batch_size, self._num_calibration), seed=0)
        self._loader = recipe.bind(dataset)  # pyright: ignore[reportArgumentType]
        self._held_out_from = 0

    @property
    def has_labels(self) -> bool:
        """Whether a task is known for the samples."""
        return self.spec is not None and self.spec.task in TASKS

    def calibration(self) -> list[Tensor]:
        """Return the inputs of the batches that are for calibration."""
        found, count = [], 0
        for batch in self._from(0):
            found.append(batch["inputs"])
            count += len(batch["inputs"])
            if count >= self._num_calibration:
                self._held_out_from = self._loader.position
                break
        return found

    def batches(self, held_out_only: bool) -> Iterator[dict[str, Tensor]]:
        """Return all batches, or those that were not for calibration; the same at each call."""
        return self._from(self._held_out_from if held_out_only else 0)

    def _from(self, position: int) -> Iterator[dict[str, Tensor]]:
        self._loader.load_state_dict({"epoch": 0, "position": position})
        return iter(self._loader)


class Judge:
    """Measures a metric of a model, higher is better: of its task, or the cosine to the original.

    Args:
        engine: the original.
        samples: where they have labels, the metric is one of their task.
        held_out_only: whether samples that are for calibration are left out.
        metric: its name; `None`: the one the task is judged by.

    Raises:
        ConfigError: there is no such metric, lower is better, or the labels are of other classes.
    """

    def __init__(
        self, engine: ModelEngine, samples: Samples, held_out_only: bool, metric: str | None
    ) -> None:
        self._engine, self._samples, self._held_out_only = engine, samples, held_out_only
        self._task: Task | None = None
        self.metric = COSINE
        if samples.has_labels and metric != COSINE and samples.spec is not None:
            self._task = resolve_task("auto", _spec_of_task(engine, samples.spec), 0.0)
            self.metric = _choose_metric(self._task, metric)
        elif metric not in (None, COSINE):
            raise ConfigError(
                f"metric={metric!r} cannot be measured: the data have no labels",
                fix="give labelled data, or leave metric out",
            )

    def measure(self, engine: ModelEngine) -> float:
        """Return the metric of a model."""
        batches = self._samples.batches(self._held_out_only)
        if self._task is None:
            return self._cosine(engine, batches)
        device = engine.device
        parallel = ParallelModel(engine, World.alone(device))
        exact = Precision("fp32", device.type, "to compare")
        return evaluate(parallel, batches, self._task, exact, False).metrics[self.metric]

    def _cosine(self, engine: ModelEngine, batches: Iterator[dict[str, Tensor]]) -> float:
        mean = Mean()
        with evaluating(engine), evaluating(self._engine), torch.no_grad():
            for batch in batches:
                inputs = batch["inputs"].to(engine.device)
                want, found = (each(inputs).float().flatten(1) for each in (self._engine, engine))
                mean.update(torch.cosine_similarity(want, found).sum(), len(inputs))
        return mean.compute()


def _are_tensors(data: Sequence) -> bool:
    return len(data) > 0 and all(isinstance(each, Tensor) for each in data)


def _choose_metric(task: Task, metric: str | None) -> str:
    known = [name for name in task.new_metrics() if name not in ("loss", "perplexity")]
    if metric is None:
        best = task.monitor.removeprefix("val_")
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
