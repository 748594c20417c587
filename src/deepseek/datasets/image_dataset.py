"""Labelled pictures: class folders, index files, Parquet, tar shards, saved sets, or built in.

Randomness of sample `index` in `epoch` is a function of `(seed, epoch, index)`, whoever computes
it.
Shapes: C channels, H height, W width; images are uint8 (C, H, W).
"""

import copy
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepseek.datasets import pixel_cache
from deepseek.datasets.callable_transform import CallableTransform, to_tensor
from deepseek.datasets.open_source import SourceOptions, open_source
from deepseek.datasets.picture import DEFAULT_MAX_PIXELS, Picture
from deepseek.datasets.pixel_cache import PixelCache
from deepseek.datasets.randomness import Draws, current_epoch, permutation
from deepseek.datasets.source import ImageSource
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.transforms import Transform, make_normalization, parse_transform
from deepseek.datasets.workers import note_sample
from deepseek.errors import ConfigError, DataError

Bad = list[tuple[int, str]]


class ImageDataset(torch.utils.data.Dataset):
    """Pictures with one class each.

    Args:
        path: what is there is detected: class folders; an index file (CSV, TSV or Parquet with a
            path and a label column); Parquet in the Hugging Face image layout (a file, a folder,
            `folder/train` for `folder/train-*.parquet`, or a pattern); tar shards in the WebDataset
            layout (a file, a folder, or a pattern such as `shard-{000..009}.tar`); a data set saved
            by Hugging Face's `save_to_disk`; or the built-in name "digits".
        transform: in the string language (`deepseek.datasets.transforms`), or a callable that takes
            a PIL image.
        class_names: forces the classes and their order; by default they come from the data.
        channels: 3 (colour) or 1 (gray).
        seed: of augmentation.
        on_bad_sample: "error", or "skip": `get` then returns None for a picture that cannot be
            read.
        max_bad_share: share of the pictures, 0..1, which may be skipped before the loader gives up.
        max_pixels: width x height above which a picture is refused before it is decoded.
        cache: "auto" keeps decoded pictures where all of them fit in 256 MiB; "off" never does. It
            does not change a result.
        allow_one_class: whether a set with a single class is taken.
        image_column: column of Parquet or a saved data set with the picture; found by its type by
            default.
        label_column: column with the label, or key of the label in a shard's `.json`.
        path_column: column of an index file with the picture's path.

    Raises:
        DataError: if there are no pictures, a label fits no class, or the first picture cannot be
            read.
        ConfigError: if an argument is out of its range.
    """

    lengths = None

    def __init__(
        self,
        path: str | os.PathLike,
        transform: str | Callable = "resize_224",
        *,
        class_names: Sequence[str] | None = None,
        channels: int = 3,
        seed: int = 0,
        on_bad_sample: str = "error",
        max_bad_share: float = 0.01,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        cache: str = "auto",
        allow_one_class: bool = False,
        image_column: str | None = None,
        label_column: str = "label",
        path_column: str = "path",
    ) -> None:
        _check_arguments(channels, on_bad_sample, max_bad_share, max_pixels, cache)
        _check_class_names(class_names)
        self.seed = seed
        self.channels = channels
        self.on_bad_sample = on_bad_sample
        self.max_bad_share = max_bad_share
        self._max_pixels = max_pixels
        self._use_cache = cache == "auto"
        self._source: ImageSource = open_source(
            path, SourceOptions(class_names, image_column, label_column, path_column)
        )
        self._rows = np.arange(len(self._source))
        _check_classes(self._source, allow_one_class)
        self._set_transform(transform)

    # -- what the set holds ------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return (
            f"ImageDataset({self._source.path!r}: {self.layout}, {len(self)} pictures,"
            f" {len(self.class_names)} classes)"
        )

    @property
    def layout(self) -> str:
        """What the path was taken for: "class folders", "tar shards", ..."""
        return self._source.layout

    @property
    def targets(self) -> np.ndarray:
        """Class number of each picture, int64 (N,)."""
        return self._source.targets[self._rows]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of class 0, 1, ..."""
        return self._source.class_names

    @property
    def transform(self) -> str | Callable:
        """The transform: text, or the callable as it was given."""
        if isinstance(self._transform, Transform):
            return self._transform.text
        return self._transform.function

    @property
    def evaluation_transform(self) -> str | Callable:
        """The deterministic part of the transform; a callable is all of itself."""
        if isinstance(self._transform, Transform):
            return self._transform.evaluation
        return self._transform.function

    @property
    def is_light(self) -> bool:
        """Whether a sample costs so little that worker processes would only slow it down."""
        shape = self.spec.fields["inputs"].shape
        return self._cache is not None and int(np.prod(shape[-2:])) <= 64 * 64

    # -- samples -----------------------------------------------------------------------------

    def __getitem__(self, index: int) -> dict[str, Tensor] | None:
        return self.get(index, current_epoch())

    def get(self, index: int, epoch: int) -> dict[str, Tensor] | None:
        """Return `inputs` (C, H, W) and `targets` (), or None for a bad picture that is skipped.

        Raises:
            DataError: if the picture cannot be read and `on_bad_sample` is "error".
        """
        batch, _ = self.get_batch([index], epoch)
        if not batch:
            return None
        return {"inputs": batch["inputs"][0], "targets": batch["targets"][0]}

    def get_batch(self, indices: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], Bad]:
        """Return the samples stacked, and the bad ones as (index, reason); {} if all are bad.

        `inputs` is (B, C, H, W) in channels-last memory order, as pictures are decoded.

        Raises:
            DataError: if a picture cannot be read and `on_bad_sample` is "error", or sizes differ.
        """
        positions = np.array([self._check_index(index) for index in indices], np.int64)
        rows = self._rows[positions]
        bad: Bad = []
        inputs = self._kept_batch(rows)
        if inputs is None:
            samples = []
            for position, row in zip(positions.tolist(), rows.tolist(), strict=True):
                note_sample(position)
                try:
                    samples.append(self._pixels(row, epoch))
                except DataError as error:
                    if self.on_bad_sample == "error":
                        raise
                    bad.append((position, error.message))
            if bad:
                is_good = ~np.isin(positions, [position for position, _ in bad])
                positions, rows = positions[is_good], rows[is_good]
            if not samples:
                return {}, bad
            inputs = self._stack(samples, rows)
        batch = {
            "inputs": inputs,
            "targets": torch.from_numpy(self._source.targets[rows]),
            "index": torch.from_numpy(positions),
        }
        return batch, bad

    def image(self, index: int) -> Image.Image:
        """Return a picture before transforms: upright, mode RGB or L, full size."""
        row = int(self._rows[self._check_index(index)])
        image = self._open(row).decode()
        return image if self.channels == 3 or image.mode == "L" else image.convert("L")

    def describe(self, index: int) -> str:
        """Return the path or place of a picture, for messages."""
        return self._source.describe(int(self._rows[self._check_index(index)]))

    # -- views -------------------------------------------------------------------------------

    def with_transform(self, transform: str | Callable) -> "ImageDataset":
        """Return the same pictures under another transform."""
        view = copy.copy(self)
        view._set_transform(transform)
        return view

    def split(
        self, share: float = 0.2, seed: int | None = None
    ) -> tuple["ImageDataset", "ImageDataset"]:
        """Return (training, validation) parts; every class is cut in the same proportion.

        The validation part has the evaluation transform.

        Args:
            share: of each class for validation, 0..1; at least one picture of a class that has two.
            seed: which pictures; the data set's own by default.
        """
        if not 0 < share < 1:
            raise ConfigError(f"share={share} is not between 0 and 1", fix="give a share like 0.2")
        targets, is_validation = self.targets, np.zeros(len(self), bool)
        for number in range(len(self.class_names)):
            members = np.flatnonzero(targets == number)
            count = min(max(round(share * len(members)), 1), len(members) - 1)
            order = permutation(len(members), self.seed if seed is None else seed, number)
            is_validation[members[order[: max(count, 0)]]] = True
        training = self.take(~is_validation)
        return training, self.take(is_validation).evaluation_view()

    def take(self, chosen: np.ndarray) -> "ImageDataset":
        """Return some of the pictures, by a mask (N,)."""
        return self._part(self._rows[chosen])

    def evaluation_view(self) -> "ImageDataset":
        """Return the same pictures with the evaluation transform."""
        return self.with_transform(self.evaluation_transform)

    def _part(self, rows: np.ndarray) -> "ImageDataset":
        if len(rows) == 0:
            raise DataError(
                f"{self._source.path}: splitting {len(self)} pictures leaves a part empty",
                fix="give more pictures, or another share",
            )
        view = copy.copy(self)
        view._rows = rows
        view.spec = view._make_spec(self.spec.fields["inputs"])
        return view

    # -- inside ------------------------------------------------------------------------------

    def _set_transform(self, transform: str | Callable) -> None:
        if isinstance(transform, str):
            self._transform = parse_transform(transform, self.channels)
        elif callable(transform):
            self._transform = CallableTransform(transform, self.channels)
        else:
            raise ConfigError(
                f"transform={transform!r} is a {type(transform).__name__}",
                fix='give steps as text, such as "resize_224+hflip", or a callable',
            )
        self._cache = None
        sample, shape = self._probe()
        if self._use_cache and pixel_cache.fits(len(self._source), shape):
            self._cache = PixelCache(len(self._source), shape)
        dtype = str(sample.dtype).removeprefix("torch.")
        self.spec = self._make_spec(FieldSpec(tuple(sample.shape), dtype))

    def _probe(self) -> tuple[Tensor, tuple[int, ...]]:
        """Return the first good sample, and the shape of its pixels where the cache would sit."""
        bad: list[str] = []
        for row in self._rows.tolist():
            try:
                sample = self._pixels(row, 0)
            except DataError as error:
                bad.append(error.message)
                if self.on_bad_sample == "error":
                    raise
                if len(bad) > self.max_bad_share * len(self):
                    break
                continue
            kept = np.asarray(self._start(row, Draws(self.seed, 0, row))[0])
            return (sample if isinstance(sample, Tensor) else to_tensor(sample.copy())), kept.shape
        raise too_many_bad(bad, len(self), self.max_bad_share)

    def _make_spec(self, inputs: FieldSpec) -> DataSpec:
        counts = np.bincount(self.targets, minlength=len(self.class_names))
        normalization = None
        if isinstance(self._transform, Transform):
            normalization = self._transform.normalization
        elif inputs.dtype == "uint8":
            normalization = make_normalization(None, self.channels)
        return DataSpec(
            task="classification",
            fields={"inputs": inputs, "targets": FieldSpec((), "int64")},
            class_names=self.class_names,
            class_counts=tuple(counts.tolist()),
            transform=self._transform.evaluation
            if isinstance(self._transform, Transform)
            else None,
            normalization=normalization,
        )

    def _open(self, row: int) -> Picture:
        where = self._source.describe(row)
        try:
            content = self._source.read(row)
        except OSError as error:
            raise DataError(
                f"{where}: the picture cannot be read: {error.strerror or error}",
                fix="check that the file exists and may be read",
            ) from error
        return Picture(content, where, self._max_pixels)

    def _start(self, row: int, draws: Draws) -> tuple[Image.Image | np.ndarray, int, bool]:
        """Return the image after its first steps, how many those were, and if it may be kept."""
        picture = self._open(row)
        if not isinstance(self._transform, Transform):
            image = picture.decode(gray=self.channels == 1)
            mode = "L" if self.channels == 1 else "RGB"
            return (image if image.mode == mode else image.convert(mode)), 0, True
        image, is_first_done = self._transform.start(picture, draws)
        num_fixed = self._transform.num_fixed
        if is_first_done and num_fixed == 0:
            return image, 1, False
        return self._transform.run(image, draws, int(is_first_done), num_fixed), num_fixed, True

    def _pixels(self, row: int, epoch: int) -> np.ndarray | Tensor:
        """Return a sample's pixels: array (H, W) or (H, W, 3), or what a callable made."""
        transform = self._transform
        draws = Draws(self.seed, epoch, row)
        pixels = self._cache.get(row) if self._cache is not None else None
        if pixels is None:
            image, done, may_keep = self._start(row, draws)
            if self._cache is not None and may_keep:
                self._cache.put(row, np.asarray(image))
        else:
            image = pixels
            done = transform.num_fixed if isinstance(transform, Transform) else 0
        if not isinstance(transform, Transform):
            image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            return transform(image, self.seed, epoch, row)
        return np.asarray(transform.run(image, draws, done, len(transform.steps)))

    def _kept_batch(self, rows: np.ndarray) -> Tensor | None:
        """Return a whole batch from the cache, where every step is fixed."""
        transform = self._transform
        if self._cache is None or not isinstance(transform, Transform):
            return None
        if transform.num_fixed < len(transform.steps):
            return None
        pixels = self._cache.get_many(rows)
        return None if pixels is None else _to_batch(pixels)

    def _stack(self, samples: list, rows: np.ndarray) -> Tensor:
        shape = samples[0].shape
        for sample, row in zip(samples, rows.tolist(), strict=True):
            if sample.shape != shape:
                raise DataError(
                    f"pictures of one batch differ in size: {tuple(shape)} of"
                    f" {self._source.describe(int(rows[0]))}, {tuple(sample.shape)} of"
                    f" {self._source.describe(row)}",
                    fix='add a step that sets the size, such as "resize_224"',
                )
        if isinstance(samples[0], Tensor):
            return torch.stack(samples)
        return _to_batch(np.stack(samples))

    def _check_index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            # IndexError, not ours: Python's iteration over a sequence ends by it.
            raise IndexError(f"index={index} is outside a data set of {len(self)} pictures")
        return int(index) % len(self)


def too_many_bad(reasons: Sequence[str], num_samples: int, max_bad_share: float) -> DataError:
    """Return the error for a set in which too many pictures cannot be read."""
    shown = "".join(f"\n    {reason}" for reason in reasons[:3])
    return DataError(
        f"{len(reasons)} of {num_samples} pictures cannot be read,"
        f" {len(reasons) / num_samples:.2%}, more than max_bad_share={max_bad_share:.2%}:{shown}",
        fix="repair or remove them, or raise max_bad_share",
    )


def _to_batch(pixels: np.ndarray) -> Tensor:
    batch = torch.from_numpy(pixels)
    return batch[:, None] if batch.ndim == 3 else batch.permute(0, 3, 1, 2)


def _check_arguments(
    channels: int, on_bad_sample: str, max_bad_share: float, max_pixels: int, cache: str
) -> None:
    problems = []
    if channels not in (1, 3):
        problems.append(f"channels={channels!r} is neither 3 nor 1")
    if on_bad_sample not in ("error", "skip"):
        problems.append(f'on_bad_sample={on_bad_sample!r} is neither "error" nor "skip"')
    if not 0 <= max_bad_share <= 1:
        problems.append(f"max_bad_share={max_bad_share!r} is not in 0..1")
    if max_pixels < 1:
        problems.append(f"max_pixels={max_pixels!r} is not >= 1")
    if cache not in ("auto", "off"):
        problems.append(f'cache={cache!r} is neither "auto" nor "off"')
    if problems:
        raise ConfigError("; ".join(problems), fix="correct the arguments of ImageDataset")


def _check_class_names(class_names: Sequence[str] | None) -> None:
    if class_names is None:
        return
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise ConfigError(
            f"class_names={class_names!r} is not a list of names", fix='give ["cat", "dog"]'
        )
    if len(set(class_names)) != len(class_names):
        raise ConfigError(f"class_names={class_names!r} has a name twice", fix="name each once")


def _check_classes(source: ImageSource, allow_one_class: bool) -> None:
    if len(source) == 0:
        raise DataError(f"{source.path} ({source.layout}) holds no pictures", fix="check the path")
    if len(source.class_names) < 2 and not allow_one_class:
        raise DataError(
            f"{source.path} ({source.layout}) has the classes {list(source.class_names)}: there is"
            " nothing to tell apart",
            fix="add pictures of another class, or set allow_one_class=True",
        )
