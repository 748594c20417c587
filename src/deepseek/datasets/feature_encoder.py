"""Features from the cells of a table: the same code for whole columns and for one row.

```
sparse          int64 (B, S)    an id for each category, range of numbers and cross
dense           float32 (B, D)  numbers, and which of them are missing
sequence.NAME   int64 (B, L)    ids, the oldest first, filled up behind by 0
length.NAME     int64 (B,)      how many of them there are
```
Ids: 0 is a missing value, 1 an unknown or rare one, the others follow. A field without a column is
left out. Names and order are those of `FeatureSpec.ids` and `FeatureSpec.numbers`.

Shapes: N rows, B batch, S ids, D numbers, L longest sequence of the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepseek.config.features import (
    FIRST,
    MISSING,
    UNKNOWN,
    Categories,
    DenseFeature,
    FeatureSpec,
    LabelFeature,
)
from deepseek.datasets.feature_values import (
    Column,
    Repeated,
    distinct,
    hash_of,
    lists_of,
    mix_hashes,
    numbers_of,
    token_of,
)
from deepseek.errors import ConfigError, DataError
from deepseek.registry import did_you_mean

_YES, _NO = frozenset({"1", "true"}), frozenset({"0", "false"})


@dataclass(frozen=True, eq=False)
class Features:
    """Features of rows.

    Attributes:
        sparse: ids, int64 (N, S).
        dense: numbers, float32 (N, D).
        sequences: name -> (ids of all rows one after the other, int64; how many each has, (N,)).
    """

    sparse: np.ndarray
    dense: np.ndarray
    sequences: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def batch(self) -> dict[str, Tensor]:
        """Return them as a model takes them."""
        found = {}
        if self.sparse.shape[1]:
            found["sparse"] = torch.from_numpy(self.sparse)
        if self.dense.shape[1]:
            found["dense"] = torch.from_numpy(self.dense)
        for name, (ids, lengths) in self.sequences.items():
            found[f"sequence.{name}"] = torch.from_numpy(pad_sequences(ids, lengths))
            found[f"length.{name}"] = torch.from_numpy(lengths)
        return found


def pad_sequences(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return sequences as rows, int64 (N, L): as long as the longest, at least 1, 0 behind."""
    padded = np.zeros((len(lengths), max(1, int(lengths.max(initial=0)))), np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = ids
    return padded


class FeatureEncoder:
    """Computes features as a fitted spec says.

    Args:
        spec: what the columns mean.

    Raises:
        ConfigError: something in the spec is not fitted yet.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        if not spec.is_fitted:
            raise ConfigError(
                "the feature spec is not fitted: vocabularies or means are missing",
                fix="fit it to a table: deepseek.datasets.fit_features(spec, table)",
            )
        self.spec = spec
        self._ids: dict[str, dict[str, int]] = {
            name: {token: FIRST + place for place, token in enumerate(entry.vocabulary or ())}
            for name, entry in [*spec.sparse.items(), *spec.sequence.items()]
            if entry.encoding == "vocabulary"
        }
        self._edges = {
            name: np.array(entry.edges or (), np.float64)
            for name, entry in spec.dense.items()
            if entry.buckets
        }

    def encode(self, columns: Mapping[str, Column]) -> Features:
        """Return the features of a table's columns, all of one length.

        Raises:
            DataError: a column is missing, or holds a value of another kind.
        """
        for name in self.spec.columns:
            if name not in columns:
                raise missing_feature_column(name, columns)
        spec = self.spec
        crossed = {part for entry in spec.cross.values() for part in entry.of}
        sparse: list[np.ndarray] = []
        hashes: dict[str, np.ndarray] = {}
        for name, entry in spec.sparse.items():
            values, places = distinct(columns[entry.column])
            tokens = [token_of(value) for value in values]
            sparse.append(self._ids_of(name, entry, tokens)[places])
            if name in crossed:
                hashes[name] = np.array([hash_of(each) for each in tokens], np.uint64)[places]
        dense: list[np.ndarray] = []
        for name, entry in spec.dense.items():
            numbers = numbers_of(columns[entry.column], entry.column)
            if entry.buckets:
                sparse.append(_ranges(numbers, self._edges[name]))
            else:
                dense += _scaled(numbers, entry)
        for entry in spec.cross.values():
            mixed = mix_hashes([hashes[part] for part in entry.of])
            sparse.append((mixed % np.uint64(entry.buckets)).astype(np.int64) + FIRST)
        num_rows = len(next(iter(columns.values()), []))
        return Features(
            _stacked(sparse, num_rows, np.int64),
            self._numbers(dense, num_rows),
            {name: self._sequence(name, columns) for name in spec.sequence},
        )

    def encode_rows(self, rows: Sequence[Mapping[str, object]]) -> Features:
        """Return the features of rows, each a mapping from column to value.

        `None` is a missing value. A column that is not given is an error: where a value that
        training had is left out in service, nobody would notice.

        Raises:
            DataError: a column is missing, or holds a value of another kind.
        """
        columns = {}
        for name in self.spec.columns:
            try:
                columns[name] = [row[name] for row in rows]
            except KeyError:
                row = next(row for row in rows if name not in row)
                raise missing_feature_column(name, row) from None
        return self.encode(columns)

    def labels(self, columns: Mapping[str, Column]) -> np.ndarray:
        """Return the labels of rows, float32 (N, T); NaN where one is missing and may be.

        Raises:
            DataError: a column is missing, a label is, or it is neither yes nor no.
        """
        found = []
        for name, entry in self.spec.label.items():
            if entry.column not in columns:
                raise missing_feature_column(entry.column, columns)
            labels = _labels(columns[entry.column], entry, name)
            if entry.missing == "error" and np.isnan(labels).any():
                row = int(np.flatnonzero(np.isnan(labels))[0])
                raise DataError(
                    f"the label {entry.column!r} is missing in row {row} of its part",
                    fix=f"leave the row out, or set label.{name}.missing: mask",
                )
            found.append(labels)
        num_rows = len(next(iter(columns.values()), []))
        return _stacked(found, num_rows, np.float32)

    def _numbers(self, dense: Sequence[np.ndarray], num_rows: int) -> np.ndarray:
        try:
            with np.errstate(over="raise"):
                return _stacked(dense, num_rows, np.float32)
        except FloatingPointError:
            limit = np.finfo(np.float32).max
            name, row = next(
                (name, int(np.abs(numbers).argmax()))
                for name, numbers in zip(self.spec.numbers, dense, strict=True)
                if (np.abs(numbers) > limit).any()
            )
            raise DataError(
                f"{name} (row {row} of its part) is too large for a 32-bit float",
                fix=f"mend the value, or set dense.{name}.log: true",
            ) from None

    def _ids_of(self, name: str, entry: Categories, tokens: Sequence[str | None]) -> np.ndarray:
        source = self.spec.source(entry)
        if source.encoding == "vocabulary":
            known = self._ids[entry.shares or name]
            found = [MISSING if each is None else known.get(each, UNKNOWN) for each in tokens]
        elif source.encoding == "hash":
            size = source.buckets
            found = [MISSING if each is None else FIRST + hash_of(each) % size for each in tokens]
        else:
            found = [MISSING if each is None else max(FIRST, hash_of(each) >> 1) for each in tokens]
        return np.array(found, np.int64)

    def _sequence(self, name: str, columns: Mapping[str, Column]) -> tuple[np.ndarray, np.ndarray]:
        entry = self.spec.sequence[name]
        column = columns[entry.column]
        if isinstance(column, Repeated):
            ids, lengths = self._sequence(name, {entry.column: [column.value]})
            return np.tile(ids, column.count), np.repeat(lengths, column.count)
        items, lengths = lists_of(column, entry.separator, name)
        values, places = distinct(items)
        ids = self._ids_of(name, entry, [token_of(value) for value in values])[places]
        rows = np.repeat(np.arange(len(lengths)), lengths)
        rows, ids = rows[ids != MISSING], ids[ids != MISSING]
        counts = np.bincount(rows, minlength=len(lengths))
        from_end = np.cumsum(counts)[rows] - np.arange(len(rows))
        ids = ids[from_end <= entry.max_length]
        return ids, np.minimum(counts, entry.max_length).astype(np.int64)


def missing_feature_column(name: str, columns: Mapping[str, object]) -> DataError:
    """Return the error of a table or row without a column that a feature is computed from."""
    return DataError(
        f"the column {name!r} is missing; there are {', '.join(map(str, columns)) or 'none'}",
        fix=f"{did_you_mean(name, map(str, columns))} Or take the feature out of the spec",
    )


def scale(numbers: np.ndarray, entry: DenseFeature) -> np.ndarray:
    """Return numbers after `log`, float64."""
    return np.sign(numbers) * np.log1p(np.abs(numbers)) if entry.log else numbers


def _scaled(numbers: np.ndarray, entry: DenseFeature) -> list[np.ndarray]:
    is_missing = np.isnan(numbers)
    numbers = scale(numbers, entry)
    if entry.standardise:
        numbers = (numbers - (entry.mean or 0.0)) / (entry.std or 1.0)
    numbers = np.where(is_missing, 0.0, numbers)
    return [numbers, is_missing] if entry.indicator else [numbers]


def _ranges(numbers: np.ndarray, edges: np.ndarray) -> np.ndarray:
    places = FIRST + np.searchsorted(edges, numbers, side="right")
    return np.where(np.isnan(numbers), MISSING, places).astype(np.int64)


def _labels(column: Column, entry: LabelFeature, name: str) -> np.ndarray:
    if entry.kind == "number":
        return numbers_of(column, entry.column).astype(np.float32)
    if entry.at_least is not None:
        numbers = numbers_of(column, entry.column)
        return np.where(np.isnan(numbers), np.nan, numbers >= entry.at_least).astype(np.float32)
    values, places = distinct(column)
    found = []
    for token in map(token_of, values):
        if token is None:
            found.append(np.nan)
        elif entry.positive is not None:
            if entry.negative is not None and token not in entry.positive + entry.negative:
                raise DataError(
                    f"the label {entry.column}={token[:40]!r} is neither a yes"
                    f" ({', '.join(entry.positive)}) nor a no ({', '.join(entry.negative)})",
                    fix=f"write it as one of these, or add it to label.{name}.positive or negative",
                )
            found.append(float(token in entry.positive))
        elif token.lower() in _YES | _NO:
            found.append(float(token.lower() in _YES))
        else:
            raise DataError(
                f"the label {entry.column}={token[:40]!r} is neither 1 nor 0",
                fix=f"say what means yes: label.{name}.positive: [...] or at_least: NUMBER",
            )
    return np.array(found, np.float32)[places]


def _stacked(columns: Sequence[np.ndarray], num_rows: int, dtype: type) -> np.ndarray:
    if not columns:
        return np.zeros((num_rows, 0), dtype)
    return np.stack(columns, axis=1).astype(dtype)
