"""Samples for what is done to a trained model: drawn from data, the same ones each time.

Calibration, held-out samples and those that a criterion looks at all come from `Samples`: whatever
the data are, in an order that is random and does not change.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from deepseek.datasets import DataLoader, VolumeDataset, infer_spec
from deepseek.datasets.evaluation_view import evaluation_dataset
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.token_store import IGNORE_INDEX
from deepseek.errors import ConfigError, DataError
from deepseek.models import ModelEngine
from deepseek.models.multi_head import trunk_config
from deepseek.models.prediction import to_batches
from deepseek.models.table_model import TableModel

LEAST_SAMPLES = 8
"""Fewer say too little of what goes into a layer."""
UNKNOWN = "unknown"
"""The task of data that do not say what they are for."""
Batch = dict[str, Tensor]


class Samples:
    """Samples in an order that is random and always the same: the first are for calibration.

    Args:
        data: a data set, a bound `DataLoader`, or without labels: a tensor (N, ...), or a list of
            tensors (B, ...).
        batch_size: samples at a time.
        num_calibration: samples for calibration at most; never more than half of all.
        as_learnt: whether they are drawn as in training, and not as in evaluation.
        num_workers: of the loader.

    Raises:
        DataError: they are too few to calibrate with.
        ConfigError: the data are a path.
    """

    def __init__(
        self,
        data,
        batch_size: int,
        num_calibration: int = 0,
        *,
        as_learnt: bool = False,
        num_workers: int | str = 0,
    ) -> None:
        if isinstance(data, str | Path):
            raise ConfigError(
                f"data={str(data)!r} is a path, which does not say how it is read",
                fix="give a data set, such as ImageDataset(path, transform=...), or a tensor",
            )
        self.spec: DataSpec | None = None
        if isinstance(data, Tensor) or (isinstance(data, Sequence) and _are_tensors(data)):
            dataset = TensorDataset(data if isinstance(data, Tensor) else torch.cat(list(data)))
        else:
            own = data.dataset if isinstance(data, DataLoader) else data
            dataset = own if as_learnt else _judged_on(own)
            self.spec = infer_spec(dataset)  # pyright: ignore[reportArgumentType]
        count = len(dataset)  # pyright: ignore[reportArgumentType]
        if num_calibration and count < LEAST_SAMPLES:
            raise DataError(
                f"{count} samples are too few to calibrate with",
                fix=f"give {LEAST_SAMPLES} or more",
            )
        self._num_calibration = min(num_calibration, count // 2)
        self._batch_size = min(batch_size, self._num_calibration) or batch_size
        recipe = DataLoader(batch_size=self._batch_size, seed=0, num_workers=num_workers)
        self._loader = recipe.bind(dataset)  # pyright: ignore[reportArgumentType]
        self._held_out_from = 0

    def __len__(self) -> int:
        return self._loader.num_samples

    @property
    def num_held_out(self) -> int:
        """Samples that are not for calibration; all, until `calibration` was asked for."""
        return len(self) - self._held_out_from

    def calibration(self) -> list[Tensor]:
        """Return the inputs of the batches that are for calibration."""
        count = max(1, self._num_calibration // self._batch_size)
        found = [batch["inputs"] for batch in self.first(count)]
        self._held_out_from = self._loader.position
        return found

    def batches(self, held_out_only: bool = False) -> Iterator[Batch]:
        """Return all batches, or those that were not for calibration; the same at each call."""
        return self._from(self._held_out_from if held_out_only else 0)

    def first(self, count: int) -> Iterator[Batch]:
        """Return the first batches, all where there are fewer."""
        return islice(self.batches(), count)

    def _from(self, position: int) -> Iterator[Batch]:
        self._loader.load_state_dict({"epoch": 0, "position": position})
        return iter(self._loader)


class Unlabelled(Dataset):
    """What `predict` takes, as a data set: a tensor (N, ...), or a list of pictures or texts.

    Args:
        items: of one kind.
        spec: of the model that is asked.
    """

    def __init__(self, items: Tensor | Sequence, spec: DataSpec | None) -> None:
        self._items, self._spec = items, spec
        fields = {} if spec is None else {"inputs": spec.fields["inputs"]}
        self.spec = DataSpec(UNKNOWN, fields)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Batch:
        item = self._items[index]
        if isinstance(item, Tensor):
            inputs = item[None]
        else:
            batches, _ = to_batches([item], self._spec, 1)
            inputs = next(iter(batches))
        return {"inputs": (inputs if self._spec is None else fill_up(inputs, self._spec))[0]}


def fill_up(tokens: Tensor, spec: DataSpec) -> Tensor:
    """Return rows of tokens (B, T) as long as a spec says; anything else as it is."""
    shape = spec.fields["inputs"].shape
    if len(shape) != 1 or tokens.ndim != 2 or tokens.is_floating_point():
        return tokens
    return F.pad(tokens, (0, max(0, shape[0] - tokens.shape[1])), value=spec.pad_token or 0)


def join_batches(batches: Sequence[Batch], spec: DataSpec) -> Batch:
    """Return batches as one; rows of tokens, and their labels, are filled up to one length."""
    found = {}
    for name in batches[0]:
        parts = [batch[name] for batch in batches]
        if name == "inputs":
            parts = [fill_up(part, spec) for part in parts]
        elif parts[0].ndim == 2 and not parts[0].is_floating_point():
            width = max(part.shape[1] for part in parts)
            parts = [
                F.pad(part, (0, width - part.shape[1]), value=IGNORE_INDEX)
                if part.shape[1] < width
                else part
                for part in parts
            ]
        found[name] = torch.cat(parts)
    return found


def draw_inputs(engine: ModelEngine, data, count: int) -> Tensor:
    """Return samples (count, ...) of data, fewer where there are not so many.

    Args:
        engine: with its data spec; tokens are padded to the length that it says.
        data: as `Samples` takes them.
        count: how many.

    Raises:
        ConfigError: the data are of another kind, or another shape than the spec says.
    """
    spec = spec_of(engine)
    inputs = fill_up(next(Samples(data, count).batches())["inputs"], spec)
    shape = spec.fields["inputs"].shape
    if inputs.shape[1:] != shape:
        raise ConfigError(
            f"the data have inputs of shape {tuple(inputs.shape[1:])}, the model takes {shape}",
            fix="give data as the model was trained on",
        )
    return inputs


def random_inputs(engine: ModelEngine, count: int) -> Tensor:
    """Return random samples (count, ...) of what an engine takes, on the CPU; always the same.

    Raises:
        ConfigError: nothing is known of its inputs.
    """
    field = spec_of(engine).fields["inputs"]
    generator = torch.Generator().manual_seed(0)
    shape = (count, *field.shape)
    if field.dtype == "uint8":
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if field.dtype.startswith("int"):
        num_tokens = trunk_config(engine.config).get("vocab_size") or engine.num_classes or 2
        return torch.randint(0, num_tokens, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def with_spec(engine: ModelEngine, data: object) -> ModelEngine:
    """Return an engine that says what it takes: one without a spec takes what a tensor is."""
    if engine.spec is not None or not isinstance(data, Tensor):
        return engine
    dtype = str(data.dtype).removeprefix("torch.")
    fields = {"inputs": FieldSpec(tuple(data.shape[1:]), dtype)}
    known = copy.copy(engine)
    known.spec = DataSpec(UNKNOWN, fields)
    return known


def spec_of(engine: ModelEngine) -> DataSpec:
    """Return the data spec of an engine.

    Raises:
        ConfigError: it has none, or one that does not say what the model takes.
    """
    if isinstance(engine.module, TableModel):
        raise ConfigError(
            f"{engine.architecture} takes the columns of a table by name, not one tensor",
            fix="keep the model file: deepseek.recsys.Scorer scores rows with it",
        )
    if engine.spec is None or "inputs" not in engine.spec.fields:
        raise ConfigError(
            "the model does not say what it takes: it has no data spec",
            fix="save it after training, or bind a spec: engine.bind(data.spec)",
        )
    return engine.spec


def _judged_on(dataset: object) -> object:
    """Return data as a model is judged on; of volumes the patches that it takes at a time."""
    if isinstance(dataset, VolumeDataset):
        return dataset.patches()
    return evaluation_dataset(dataset)


def _are_tensors(data: Sequence) -> bool:
    return len(data) > 0 and all(isinstance(each, Tensor) for each in data)
