"""The samples that every candidate is measured on, and others to calibrate on, in one file.

They are drawn from all the data in an order of their own. What is calibrated on is not measured
on. All processes read the same file: no candidate is measured on other samples than another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from deepseek.datasets import DataLoader, ImageDataset, TextDataset, TokenDataset
from deepseek.datasets.foreign_dataset import ForeignDataset
from deepseek.deploy.artefact import sha256
from deepseek.errors import ConfigError, DataError
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.prediction import to_batches
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
        path: `inputs` (N, ...), `targets` (N, ...) where there are labels, `calibration` (M, ...).
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
    read, num_available, has_labels = _open(engine, data)
    if num_available < 4:
        raise DataError(
            f"{num_available} samples: they are to be measured on and calibrated on",
            fix="give 4 or more, better hundreds",
        )
    order = torch.randperm(num_available, generator=torch.Generator().manual_seed(0)).tolist()
    num_calibration = min(MAX_CALIBRATION, num_available // 4)
    rest = num_available - num_calibration
    if count is None:
        count = _affordable(engine, read(order[: min(batch_size, rest)])[0], budget_s)
    count = min(count, rest)
    count = count - count % batch_size if count >= batch_size else count
    inputs, targets = read(order[: num_calibration + count])
    kept = {"calibration": inputs[:num_calibration], "inputs": inputs[num_calibration:]}
    if targets is not None:
        _check_targets(engine, targets)
        kept["targets"] = targets[num_calibration:]
    with replacing(path) as draft:
        save_file({name: tensor.contiguous() for name, tensor in kept.items()}, draft)
    return Material(path, len(kept["inputs"]), num_available, has_labels, sha256(path))


Reader = Callable[[list[int]], tuple[Tensor, Tensor | None]]


def _open(engine: ModelEngine, data) -> tuple[Reader, int, bool]:
    """Return what reads samples by their numbers, how many there are, and whether with labels."""
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, Dataset | ImageDataset | TextDataset | TokenDataset):
        return _labelled(engine, data)
    if isinstance(data, str | Path):
        raise ConfigError(
            f"data={str(data)!r} is a path, which does not say how it is read",
            fix="give a data set, such as ImageDataset(path, transform=...), or a list of pictures",
        )
    if not isinstance(data, Tensor | list | tuple):
        raise ConfigError(
            f"data is a {type(data).__name__}, which holds no samples",
            fix="give a data set, or a list or tensor of what predict takes",
        )

    def read(indices: list[int]) -> tuple[Tensor, None]:
        chosen = data[indices] if isinstance(data, Tensor) else [data[at] for at in indices]
        batches, _ = to_batches(chosen, engine.spec, len(indices))
        return torch.cat(list(batches)), None

    return read, len(data), False


def _labelled(engine: ModelEngine, data) -> tuple[Reader, int, bool]:
    if isinstance(data, TextDataset):
        data = data.evaluation_view()
    is_own = isinstance(data, ImageDataset | TextDataset | TokenDataset)
    source = data if is_own else ForeignDataset(data, 0)
    names = source.spec.class_names
    known = engine.spec.class_names if engine.spec else ()
    if is_own and names and names != known:
        raise DataError(
            f"the data have the classes {', '.join(names[:4])}, ..., the model"
            f" {', '.join(known[:4])}, ...",
            fix="give data of the classes that the model was trained on, class_names=spec's",
        )

    def read(indices: list[int]) -> tuple[Tensor, Tensor]:
        batch, _ = source.get_batch(indices, 0)
        return batch["inputs"], batch["targets"]

    return read, len(source), True


def _check_targets(engine: ModelEngine, targets: Tensor) -> None:
    largest = int(targets.max()) if not targets.is_floating_point() else 0
    if engine.num_classes is not None and largest >= engine.num_classes:
        raise DataError(
            f"the data have a sample of class {largest}, the model has classes 0 to"
            f" {engine.num_classes - 1}",
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
