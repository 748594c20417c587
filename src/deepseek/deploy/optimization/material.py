"""The samples that every candidate is measured on, and others to calibrate on, in one file.

They are drawn from all the data in an order of their own. What is calibrated on is not measured
on. All processes read the same file: no candidate is measured on other samples than another.
"""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from deepseek.datasets import DataLoader
from deepseek.datasets.batch_source import BatchSource
from deepseek.deploy.artefact import sha256
from deepseek.deploy.samples import Samples, Unlabelled, join_batches, spec_of
from deepseek.errors import ConfigError, DataError
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.whole_file import replacing

MAX_CALIBRATION = 128
MIN_SAMPLES = 64
MAX_BYTES = 512 << 20
EVALUATION_SHARE = 0.05
"""Of the budget, that the model itself may take to compute the samples once."""


@dataclass(frozen=True)
class Material:
    """A file of samples.

    Attributes:
        path: `inputs` (N, ...), `targets` (N, ...) where there are labels, and `targets.TASK` of
            several tasks; `calibration` (M, ...).
        num_samples: N.
        num_available: samples that the data have.
        has_labels: whether there are targets.
        digest: SHA-256 of the file.
    """

    path: Path
    num_samples: int
    num_available: int
    has_labels: bool
    digest: str

    def inputs(self, start: int, stop: int) -> Tensor:
        """Return some inputs, read from the file."""
        return read_rows(self.path, "inputs", start, stop)


def read_rows(path: Path, name: str, start: int = 0, stop: int | None = None) -> Tensor:
    """Return rows of a tensor of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return file.get_slice(name)[start:stop]


def count_rows(path: Path, name: str) -> int:
    """Return how many rows a tensor of a safetensors file has; 0 where it is missing."""
    with safe_open(path, framework="pt") as file:
        return file.get_slice(name).get_shape()[0] if name in file.keys() else 0  # noqa: SIM118


def label_names(path: Path) -> list[str]:
    """Return the names of the labels in a safetensors file: `targets`, `targets.TASK`."""
    with safe_open(path, framework="pt") as file:
        return [name for name in file.keys() if name.partition(".")[0] == "targets"]  # noqa: SIM118


def gather(
    engine: ModelEngine, data, path: Path, batch_size: int, budget_s: float, count: int | None
) -> Material:
    """Draw samples and write them.

    Args:
        engine: with its data spec.
        data: a labelled data set or a bound `DataLoader`; or what `predict` takes, without labels.
        path: of the file.
        batch_size: samples of a batch; their number is a multiple of it.
        budget_s: of the whole search, seconds.
        count: samples to measure on; `None`: as many as the budget allows.

    Raises:
        ConfigError: there are too few samples, or they are of another kind than the model's.
        DataError: a label is of no class of the model.
    """
    samples, has_labels = _open(engine, data, batch_size)
    calibration = [{"inputs": inputs} for inputs in samples.calibration()]
    rest = samples.num_held_out
    if count is None:
        count = _affordable(engine, calibration[0]["inputs"], budget_s)
    count = min(count, rest)
    count = count - count % batch_size if count >= batch_size else count
    measured, num_drawn = [], 0
    for batch in samples.batches(held_out_only=True):
        measured.append(batch)
        num_drawn += len(batch["inputs"])
        if num_drawn >= count:
            break
    spec = spec_of(engine)
    found = join_batches(measured, spec)
    names = [name for name in found if name.partition(".")[0] == "targets"] if has_labels else []
    kept = {name: found[name][:count] for name in ("inputs", *names)}
    kept["calibration"] = join_batches(calibration, spec)["inputs"][:MAX_CALIBRATION]
    _check_targets(engine, kept)
    with replacing(path) as draft:
        save_file({name: tensor.contiguous() for name, tensor in kept.items()}, draft)
    return Material(path, len(kept["inputs"]), len(samples), has_labels, sha256(path))


def _open(engine: ModelEngine, data, batch_size: int) -> tuple[Samples, bool]:
    """Return the samples, and whether they have labels."""
    if isinstance(data, Tensor | list | tuple):
        return Samples(Unlabelled(data, engine.spec), batch_size, MAX_CALIBRATION), False
    if not isinstance(data, str | Path | Dataset | DataLoader | BatchSource):
        raise ConfigError(
            f"data is a {type(data).__name__}, which holds no samples",
            fix="give a data set, or a list or tensor of what predict takes",
        )
    samples = Samples(data, batch_size, MAX_CALIBRATION)
    names = samples.spec.class_names if samples.spec else ()
    known = engine.spec.class_names if engine.spec else ()
    is_unnamed = names == tuple(map(str, range(len(names))))
    if is_unnamed and engine.num_classes is not None:
        _check_class(len(names) - 1, engine.num_classes)
    elif names and names != known:
        raise DataError(
            f"the data have the classes {', '.join(names[:4])}, ..., the model"
            f" {', '.join(known[:4])}, ...",
            fix="give data of the classes that the model was trained on, class_names=spec's",
        )
    return samples, samples.spec is not None and "targets" in samples.spec.fields


def _check_targets(engine: ModelEngine, kept: dict[str, Tensor]) -> None:
    """Refuse labels of classes that the model does not have."""
    tasks = engine.spec.tasks if engine.spec else {}
    classes = {f"targets.{name}": own.num_classes or None for name, own in tasks.items()}
    for name, count in (classes or {"targets": engine.num_classes}).items():
        labels = kept.get(name)
        largest = -1 if labels is None or labels.is_floating_point() else int(labels.max())
        if count is not None:
            _check_class(largest, count)


def _check_class(largest: int, num_classes: int) -> None:
    if largest >= num_classes:
        raise DataError(
            f"the data have a sample of class {largest}, the model has classes 0 to"
            f" {num_classes - 1}",
            fix="give data of the classes that the model was trained on",
        )


def _affordable(engine: ModelEngine, inputs: Tensor, budget_s: float) -> int:
    with evaluating(engine), torch.inference_mode():
        engine(inputs)
        began = perf_counter()
        engine(inputs)
    per_sample = (perf_counter() - began) / len(inputs)
    by_time = int(EVALUATION_SHARE * budget_s / per_sample)
    by_size = MAX_BYTES // (inputs[0].numel() * inputs.element_size())
    return min(max(by_time, MIN_SAMPLES), by_size)
