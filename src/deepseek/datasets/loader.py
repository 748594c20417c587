"""Batches, in an order that can be taken up again anywhere: `DataLoader`.

```
for batch in loader:          # the rest of loader.epoch, from loader.position on
    ...                       # loader.position has counted this batch already
                              # afterwards: epoch + 1, position 0
```
"""

import os
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from deepseek.datasets.batch_source import BatchSource, as_source
from deepseek.datasets.image_dataset import ImageDataset, too_many_bad
from deepseek.datasets.interaction_dataset import InteractionDataset
from deepseek.datasets.ramp import Ramp
from deepseek.datasets.sampler import BatchKeys, Key, Progress
from deepseek.datasets.spec import DataSpec
from deepseek.datasets.text_dataset import TextDataset
from deepseek.datasets.volume_dataset import VolumeDataset
from deepseek.datasets.workers import Fetched, Workers
from deepseek.errors import CheckpointError, ConfigError, DataError, DeepSeekError
from deepseek.registry import Registry

# name -> a function from a path, a transform and options to a data set
INPUT_FORMATS: Registry[Callable] = Registry(
    "input_format",
    {
        "image": "deepseek.datasets.image_dataset:ImageDataset",
        "table": "deepseek.datasets.interaction_dataset:InteractionDataset",
        "nodules": "deepseek.medical.nodule_dataset:NoduleDataset",
        "text": "deepseek.datasets.text_dataset:TextDataset",
        "volume": "deepseek.datasets.volume_dataset:VolumeDataset",
    },
)

LabelledDataset = ImageDataset | InteractionDataset | TextDataset | VolumeDataset
"""Data sets of ours whose samples have labels."""
WORKER_TIMEOUT_S = 600.0


class DataLoader:
    """Batches of a data set; without data a recipe, until `load` or `bind`.

    Args:
        data: a path, a data set of ours, or any map-style torch data set yielding (x, y) or a dict.
        input_format: what a path holds: "image", "table", "text", "volume" or "nodules".
        batch_size: samples in a batch.
        shuffle: a new order each epoch; else the order of the data set.
        num_workers: processes that prepare batches; "auto": none for small sets in memory, else one
            a core beside the main one, 8 at the most. It does not change a batch.
        seed: of the order, and of augmentation where `load` makes the data set.
        drop_last: whether a smaller batch at the end of an epoch is left out.
        transform: of the data set; None: its own.
        prefetch_batches: how many batches each worker prepares ahead.
        batch_size_ramp: (START, INCREMENT, TOTAL): batches of START samples at first, larger by
            INCREMENT in equal parts of the first TOTAL samples, up to `batch_size`.
        worker_timeout_s: a worker that takes longer for a batch counts as hanging, and is replaced;
            0: never.

    Attributes:
        epoch: number of the pass that iteration gives next, from 0.
        position: samples of this epoch that were handed out, over all ranks.
        batch_samples: samples of the newest batch, over all ranks.
        num_bad: samples that were skipped as they could not be read.
    """

    def __init__(
        self,
        data: str | os.PathLike | torch.utils.data.Dataset | None = None,
        *,
        input_format: str = "image",
        batch_size: int = 32,
        shuffle: bool = True,
        num_workers: int | str = "auto",
        seed: int = 0,
        drop_last: bool = False,
        transform: str | Callable | None = None,
        prefetch_batches: int = 2,
        batch_size_ramp: tuple[int, int, int] | None = None,
        worker_timeout_s: float = WORKER_TIMEOUT_S,
    ) -> None:
        _check_arguments(batch_size, num_workers, prefetch_batches, seed)
        self.worker_timeout_s = worker_timeout_s
        if batch_size_ramp is not None and drop_last:
            raise ConfigError(
                "drop_last=True and a batch_size_ramp: which samples are left out would depend on"
                " the ramp",
                fix="set drop_last=False, or leave batch_size_ramp out",
            )
        self.ramp = Ramp(*batch_size_ramp, batch_size) if batch_size_ramp is not None else None
        INPUT_FORMATS.get(input_format)  # an unknown name fails here, not at `load`
        self.input_format = input_format
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.seed = seed
        self.drop_last = drop_last
        self.transform = transform
        self.prefetch_batches = prefetch_batches
        self._progress = Progress()
        self._dataset: torch.utils.data.Dataset | None = None
        self._source: BatchSource | None = None
        self._keys: BatchKeys | None = None
        self._spec: DataSpec | None = None
        self._workers: Workers | None = None
        self._bad: dict[int, str] = {}
        self._share = (0, 1)
        self.batch_samples = 0
        if isinstance(data, str | os.PathLike):
            self.load(data)
        elif data is not None:
            self.bind(data)

    # -- recipe -> loader --------------------------------------------------------------------

    def load(self, path: str | os.PathLike, **options) -> "DataLoader":
        """Read the data set at `path` by `input_format`, and bind it.

        Args:
            path: as the data set takes it.
            options: further arguments of the data set, such as `class_names` or `tokenizer`.
        """
        options = {"seed": self.seed, **options}
        if self.transform is not None:
            options.setdefault("transform", self.transform)
        return self._attach(INPUT_FORMATS.get(self.input_format)(path, **options))

    def bind(self, dataset: torch.utils.data.Dataset) -> "DataLoader":
        """Take a data set, and start at epoch 0."""
        if self.transform is not None:
            if not isinstance(dataset, ImageDataset):
                raise ConfigError(
                    f"transform={self.transform!r} would be ignored: {type(dataset).__name__}"
                    " makes its own samples",
                    fix="leave transform out, and transform inside the data set",
                )
            dataset = dataset.with_transform(self.transform)
        return self._attach(dataset)

    def _attach(self, dataset) -> "DataLoader":
        source = as_source(dataset, self.seed)
        keys = BatchKeys(
            len(source), self.batch_size, self.shuffle, self.drop_last, self.seed, self._progress,
            self.ramp, self._share, source.lengths,
        )  # fmt: skip
        if len(keys) == 0:
            raise DataError(
                f"drop_last=True leaves no batch: {len(source)} samples,"
                f" batch_size={self.batch_size}",
                fix="lower batch_size, or set drop_last=False",
            )
        self._progress.epoch = self._progress.position = 0
        self._dataset, self._source, self._keys = dataset, source, keys
        self._spec, self._workers, self._bad = source.spec, None, {}
        return self

    def exchange(self, dataset: torch.utils.data.Dataset) -> None:
        """Take another form of the same data, such as of another tokenizer; progress stays.

        The order depends on the number and the lengths of the samples: in the midst of an epoch
        what is left of it is drawn from all of the new form, and batches prepared ahead are made
        anew.
        """
        self.close()
        epoch, position = self.epoch, self.position
        self._attach(dataset)
        self._progress.epoch = epoch
        self._progress.position = min(position, self.num_samples)

    def take_share(self, part: int, num_parts: int) -> None:
        """Hand out only this part of every batch from now on; `position` counts whole batches.

        A part may be empty at the end of an epoch: the batch is then `{}`.
        """
        self.close()
        self._workers = None
        self._share = (part, num_parts)
        if self._keys is not None:
            self._keys.share = self._share

    @property
    def is_bound(self) -> bool:
        """Whether there is a data set."""
        return self._source is not None

    @property
    def varies_in_length(self) -> bool:
        """Whether samples differ in length, and a batch is as long as the longest of its own."""
        return self._source is not None and self._source.lengths is not None

    @property
    def dataset(self) -> torch.utils.data.Dataset:
        """The data set, as it was given or loaded."""
        if self._dataset is None:
            raise _unbound()
        return self._dataset

    @property
    def spec(self) -> DataSpec:
        """What the data set holds."""
        if self._spec is None:
            raise _unbound()
        return self._spec

    @property
    def num_samples(self) -> int:
        """Samples handed out in an epoch."""
        return self._bound_keys().num_handed_out

    @property
    def num_processes(self) -> int:
        """What `num_workers` comes to with these data on this machine."""
        if self._source is None:
            raise _unbound()
        return choose_num_workers(self.num_workers, self._source, len(self))

    def __len__(self) -> int:
        """Return the number of batches in the epoch that iteration gives next."""
        return len(self._bound_keys())

    def count_batches(self, epoch: int) -> int:
        """Return the number of batches of an epoch, counted from 0; they differ under a ramp."""
        return self._bound_keys().count_batches(epoch)

    # -- progress ----------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Number of the pass that iteration gives next, from 0."""
        return self._progress.epoch

    @property
    def position(self) -> int:
        """Samples of this epoch that were handed out."""
        return self._progress.position

    @property
    def num_bad(self) -> int:
        """Distinct samples that were skipped as they could not be read."""
        return len(self._bad)

    def state_dict(self) -> dict[str, int]:
        """Return where the loader is; what workers have prepared ahead is not counted."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from where `state_dict` was taken; the next iteration begins there.

        Raises:
            CheckpointError: if the content is something else, or lies beyond the data set.
        """
        values = [state.get("epoch"), state.get("position")]
        if set(state) != {"epoch", "position"} or not all(
            isinstance(value, int) and value >= 0 for value in values
        ):
            raise CheckpointError(
                f"the loader's state {dict(state)!r} is not two counts, epoch and position",
                fix="give what state_dict() returned",
            )
        if self.is_bound and state["position"] > self.num_samples:
            raise CheckpointError(
                f"position={state['position']} is beyond the {self.num_samples} samples of an"
                " epoch: the state belongs to another data set",
                fix="go on with the data set that the run began with",
            )
        self._progress.epoch, self._progress.position = state["epoch"], state["position"]

    # -- iteration ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of `epoch` from `position` on; then count the epoch.

        Raises:
            DataError: if a sample cannot be read, too many had to be skipped, or a worker died.
        """
        for fetched in self._fetch():
            if fetched.error is not None:
                self.close()
                raise fetched.error
            self._progress.position += fetched.num_samples
            self.batch_samples = fetched.num_samples
            self._note_bad(fetched.bad)
            if fetched.batch or self._share != (0, 1):  # ranks take the same number of steps
                yield fetched.batch
        self._progress.epoch += 1
        self._progress.position = 0

    def _fetch(self) -> Iterator[Fetched]:
        """Yield what is left of the epoch; after an `exchange` what is left of the new data."""
        workers = None
        while workers is None or workers is not self._workers:
            if self._workers is None:
                self._workers = self._make_workers()
            workers = self._workers
            for fetched in workers:
                yield fetched
                if workers is not self._workers:
                    break

    def close(self) -> None:
        """End the worker processes; the next iteration starts new ones."""
        if self._workers is not None:
            self._workers.close()

    def worker_pids(self) -> list[int]:
        """Return the process numbers of the workers that live now."""
        return self._workers.pids() if self._workers is not None else []

    def _note_bad(self, bad: list[tuple[int, str]]) -> None:
        if not bad:
            return
        self._bad.update(bad)
        share = getattr(self._dataset, "max_bad_share", 0.0)
        if self._source is not None and len(self._bad) > share * len(self._source):
            raise too_many_bad(list(self._bad.values()), len(self._source), share)

    def _make_workers(self) -> Workers:
        if self._source is None:
            raise _unbound()
        return Workers(
            _Fetcher(self._source),
            self._bound_keys(),
            num_workers=self.num_processes,
            prefetch_batches=self.prefetch_batches,
            timeout_s=self.worker_timeout_s,
            seed=self.seed,
        )

    def _bound_keys(self) -> BatchKeys:
        if self._keys is None:
            raise _unbound()
        return self._keys


class _Fetcher(torch.utils.data.Dataset):
    """What torch's loader sees: a key gives a whole batch."""

    def __init__(self, source: BatchSource) -> None:
        self._source = source

    def __getitems__(self, key: Key) -> Fetched:
        epoch, indices, num_samples = key
        if not indices:
            return Fetched({}, num_samples, [])
        try:
            batch, bad = self._source.get_batch(indices, epoch)
        except DeepSeekError as error:
            # As a value: torch would rewrite the message around a traceback, and lose the fix.
            return Fetched({}, num_samples, [], error)
        return Fetched(batch, num_samples, bad)


def choose_num_workers(num_workers: int | str, source: BatchSource, num_batches: int) -> int:
    """Return the number of worker processes that "auto" stands for."""
    if isinstance(num_workers, int):
        return num_workers
    if source.is_light or num_batches < 2:
        return 0
    num_cores = len(os.sched_getaffinity(0)) if os.name == "posix" else os.cpu_count() or 1
    return min(max(num_cores - 1, 1), 8, num_batches)


def _check_arguments(
    batch_size: int, num_workers: int | str, prefetch_batches: int, seed: int
) -> None:
    problems = []
    if batch_size < 1:
        problems.append(f"batch_size={batch_size!r} is not >= 1")
    if num_workers != "auto" and (not isinstance(num_workers, int) or num_workers < 0):
        problems.append(f'num_workers={num_workers!r} is neither "auto" nor a number >= 0')
    if prefetch_batches < 1:
        problems.append(f"prefetch_batches={prefetch_batches!r} is not >= 1")
    if seed < 0:
        problems.append(f"seed={seed!r} is not >= 0")
    if problems:
        raise ConfigError("; ".join(problems), fix="correct the arguments of DataLoader")


def _unbound() -> ConfigError:
    return ConfigError(
        "this DataLoader is a recipe: it has no data yet",
        fix="call data_loader.load(path) or data_loader.bind(dataset)",
    )
