"""Rows of a table as samples: who met what, where and when, and what came of it.

Shapes: B batch, S ids, D numbers, L sequence, T labels.
"""

import copy
import os
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from deepseek.config.feature_file import read_features
from deepseek.config.features import FeatureSpec
from deepseek.datasets.cache_folder import cache_folder
from deepseek.datasets.column_source import ColumnSource
from deepseek.datasets.feature_inference import Labels, infer_features
from deepseek.datasets.feature_store import open_features
from deepseek.datasets.randomness import permutation
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.table_reading import TableOptions
from deepseek.errors import ConfigError, DataError


class InteractionDataset(torch.utils.data.Dataset):
    """Features and labels of the rows of a table.

    Features are computed once, when the set is made; see `cache`. A batch is a dict: `sparse`,
    `dense`, `sequence.NAME` and `length.NAME` as `FeatureEncoder` makes them, `index`, and
    `targets`, float32 (B,), of one label; of several `targets`, bool (B, T): which are there, and
    `targets.TASK`, float32 (B,).

    Args:
        data: path of a table (CSV, TSV, Parquet, JSON lines; a folder or pattern of such), an Arrow
            table, or a mapping from column to values.
        features: what the columns mean: a `FeatureSpec`, a mapping as in its file, the path of one,
            or `None`: found from the data, see `infer_features`. What is fitted in it stays.
        labels: without `features`, what is learnt: see `infer_features`.
        crosses: without `features`, pairs of sparse features.
        ignore: without `features`, columns to leave out.
        time_column: when a row happened: numbers, or times, in text by ISO 8601. Rows are
            then in the order of time, those of one time in the order of the table.
        layout: how files are read: "auto" or "criteo"; see `TableOptions`. A model file
            remembers this and the next two.
        column_names: of a text file without a header.
        delimiter: of a text file.
        seed: of `split`.
        cache: where features are kept: "auto" (the user's cache folder, or `DEEPSEEK_CACHE`), a
            folder, or "off": in memory. What was in memory stays there.

    Raises:
        DataError: the table cannot be read, a column is missing or holds something else.
        ConfigError: an argument or the feature spec is wrong.

    Example:
        >>> clicks = {"user": ["a", "b", "a", "b"], "price": [1, 2, 3, 4], "click": [0, 1, 1, 0]}
        >>> data = InteractionDataset(clicks, labels="click")
        >>> sorted(data[0])
        ['dense', 'sparse', 'targets']
    """

    lengths = None
    is_light = True

    def __init__(
        self,
        data: str | os.PathLike | pa.Table | Mapping,
        features: FeatureSpec | Mapping | str | os.PathLike | None = None,
        *,
        labels: Labels | None = None,
        crosses: Sequence[Sequence[str]] = (),
        ignore: Sequence[str] = (),
        time_column: str | None = None,
        layout: str = "auto",
        column_names: Sequence[str] | None = None,
        delimiter: str | None = None,
        seed: int = 0,
        cache: str | os.PathLike = "auto",
    ) -> None:
        names = None if column_names is None else tuple(column_names)
        options = TableOptions(layout, names, delimiter)
        source = ColumnSource(data, options)
        if features is None:
            features = infer_features(source, labels, crosses=crosses, ignore=ignore)
        elif labels is not None or crosses or ignore:
            raise ConfigError(
                "labels, crosses or ignore beside features would be ignored",
                fix="write them into the feature spec, or leave features out",
            )
        if isinstance(features, str | os.PathLike):
            features = read_features(os.fspath(features))
        elif not isinstance(features, FeatureSpec):
            features = FeatureSpec.from_json(features)
        how = [layout, names, delimiter]
        folder = cache_folder(cache, "tables")
        self._store = open_features(source, features, time_column, folder, how)
        self.path, self.time_column, self.seed = source.path, time_column, seed
        self._reading = options if source.files else TableOptions()
        self._rows = np.arange(len(self._store))
        if time_column is not None:
            self._rows = np.argsort(self._store.arrays["time"], kind="stable")
        self.spec = self._make_spec()

    # -- what the set holds ------------------------------------------------------------------

    @property
    def features(self) -> FeatureSpec:
        """What the columns mean, fitted."""
        return self._store.spec

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels."""
        return tuple(self.features.label)

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, float32 (N, T); NaN where one is missing."""
        return self._store.arrays["labels"][self._rows]

    @property
    def times(self) -> np.ndarray:
        """When each sample happened, float64 (N,).

        Raises:
            ConfigError: the set has no column of times.
        """
        if self.time_column is None:
            raise ConfigError("the data set has no times", fix="give it time_column=...")
        return self._store.arrays["time"][self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        spec = self.features
        parts = [f"{len(self):,} rows", f"{len(spec.ids)} ids", f"{len(spec.numbers)} numbers"]
        if spec.sequence:
            parts.append(f"{len(spec.sequence)} sequences")
        return f"InteractionDataset({self.path!r}: {', '.join(parts)}, labels {self._shares()})"

    def _shares(self) -> str:
        means = np.nanmean(self.labels, axis=0).tolist()
        return ", ".join(
            f"{name} {mean:.4g}" for name, mean in zip(self.class_names, means, strict=True)
        )

    # -- samples -----------------------------------------------------------------------------

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            # IndexError, not ours: Python's iteration over a sequence ends by it.
            raise IndexError(f"index={index} is outside a data set of {len(self)} samples")
        batch, _ = self.get_batch([index % len(self)], 0)
        return {name: value[0] for name, value in batch.items() if name != "index"}

    def get_batch(
        self, indices: Sequence[int], epoch: int
    ) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
        """Return a batch; no row is ever bad, all were read when the set was made."""
        positions = np.asarray(indices, np.int64)
        rows = self._rows[positions]
        batch = self._store.rows(rows).batch()
        labels = torch.from_numpy(np.array(self._store.arrays["labels"][rows]))
        if labels.shape[1] == 1:
            batch["targets"] = labels[:, 0]
        else:
            batch["targets"] = ~labels.isnan()
            for number, name in enumerate(self.features.label):
                batch[f"targets.{name}"] = labels[:, number]
        batch["index"] = torch.from_numpy(positions)
        return batch, []

    # -- views -------------------------------------------------------------------------------

    def split(
        self, share: float = 0.1, seed: int | None = None
    ) -> tuple["InteractionDataset", "InteractionDataset"]:
        """Return (training, validation) parts: the last rows of a set in the order of time.

        Without times any rows. The features are those of the whole set: fit them to other rows
        beforehand where validation must not know what values occur.

        Args:
            share: of the rows for validation, 0..1; at least one.
            seed: which rows; the data set's own by default.
        """
        if not 0 < share < 1:
            raise ConfigError(f"share={share} is not between 0 and 1", fix="give a share like 0.1")
        count = max(round(share * len(self)), 1)
        if count >= len(self):
            raise DataError(
                f"{self.path}: splitting {len(self)} rows leaves a part empty",
                fix="give more rows, or another share",
            )
        if self.time_column is not None:
            return self.part(range(len(self) - count)), self.part(
                range(len(self) - count, len(self))
            )
        order = permutation(len(self), self.seed if seed is None else seed)
        return self.part(np.sort(order[count:])), self.part(np.sort(order[:count]))

    def part(self, positions: Sequence[int] | np.ndarray) -> "InteractionDataset":
        """Return some samples of the set, by their positions."""
        view = copy.copy(self)
        view._rows = self._rows[np.asarray(positions, np.int64)]
        view.spec = view._make_spec()
        return view

    def evaluation_view(self) -> "InteractionDataset":
        """Return the set: nothing in it is random."""
        return self

    # -- inside ------------------------------------------------------------------------------

    def _make_spec(self) -> DataSpec:
        spec = self.features
        fields = {}
        if spec.ids:
            fields["sparse"] = FieldSpec((len(spec.ids),), "int64")
        if spec.numbers:
            fields["dense"] = FieldSpec((len(spec.numbers),), "float32")
        for name, entry in spec.sequence.items():
            fields[f"sequence.{name}"] = FieldSpec((entry.max_length,), "int64")
            fields[f"length.{name}"] = FieldSpec((), "int64")
        number = FieldSpec((), "float32")
        kinds = {
            name: "binary" if entry.kind == "binary" else "regression"
            for name, entry in spec.label.items()
        }
        known = {"features": spec, "reading": self._reading}
        if len(kinds) == 1:
            (task,) = kinds.values()
            return DataSpec(task=task, fields={**fields, "targets": number}, **known)
        fields["targets"] = FieldSpec((len(kinds),), "bool")
        fields |= {f"targets.{name}": number for name in kinds}
        tasks = {
            name: DataSpec(task=kind, fields={"targets": number}) for name, kind in kinds.items()
        }
        return DataSpec(task="multi", fields=fields, tasks=tasks, **known)
