"""What features need to know of all rows: vocabularies, means, ranges. One pass over the table."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from deepseek.config.features import Categories, DenseFeature, FeatureSpec, SequenceFeature
from deepseek.datasets.column_source import Columns, ColumnSource
from deepseek.datasets.feature_encoder import missing_feature_column, scale
from deepseek.datasets.feature_values import distinct, lists_of, numbers_of, token_of
from deepseek.errors import DataError

SAMPLE = 1 << 20
"""Numbers that quantiles are taken of, evenly over the table."""


def fit_features(spec: FeatureSpec, data: ColumnSource | Iterable[Columns]) -> FeatureSpec:
    """Return the spec with what it lacks found from a table; what it has stays.

    Args:
        spec: what the columns mean.
        data: the table that is learnt from: no rows that are to be evaluated on.

    Raises:
        DataError: a column is missing, or holds a value of another kind.
    """
    counts = {
        name: _Counts(entry)
        for name, entry in [*spec.sparse.items(), *spec.sequence.items()]
        if not entry.is_fitted
    }
    moments = {name: _Moments(entry) for name, entry in spec.dense.items() if not entry.is_fitted}
    if not counts and not moments:
        return spec
    named = {**counts, **moments}
    columns = list(dict.fromkeys(each.entry.column for each in named.values()))
    if isinstance(data, ColumnSource):
        for column in columns:
            if column not in data.columns:
                raise missing_feature_column(column, dict.fromkeys(data.columns))
        data = data.chunks(columns)
    for chunk in data:
        for each in named.values():
            each.add(chunk)
    return FeatureSpec(
        sparse=_fitted(spec.sparse, counts),
        dense=_fitted(spec.dense, moments),
        sequence=_fitted(spec.sequence, counts),
        cross=spec.cross,
        label=spec.label,
    )


def _fitted(entries: Mapping, found: Mapping) -> dict:
    return {
        name: entry.model_copy(update=found[name].found()) if name in found else entry
        for name, entry in entries.items()
    }


class _Counts:
    """How often each category occurs."""

    def __init__(self, entry: Categories) -> None:
        self.entry = entry
        self._counts: Counter[str] = Counter()

    def add(self, chunk: Columns) -> None:
        column = chunk[self.entry.column]
        if isinstance(self.entry, SequenceFeature):
            column, _ = lists_of(column, self.entry.separator, self.entry.column)
        values, places = distinct(column)
        counts = np.bincount(places, minlength=len(values)).tolist()
        for value, count in zip(values, counts, strict=True):
            if (token := token_of(value)) is not None:
                self._counts[token] += count
        if len(self._counts) > 4 * self.entry.max_size:  # what was rare so far is forgotten
            self._counts = Counter(dict(self._counts.most_common(2 * self.entry.max_size)))

    def found(self) -> dict:
        kept = [
            (-count, token)
            for token, count in self._counts.items()
            if count >= self.entry.min_count
        ]
        return {"vocabulary": tuple(token for _, token in sorted(kept)[: self.entry.max_size])}


class _Moments:
    """Mean, spread and quantiles of numbers."""

    def __init__(self, entry: DenseFeature) -> None:
        self.entry = entry
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._has_missing = False
        self._sample: list[np.ndarray] = []
        self._step, self._kept = 1, 0

    def add(self, chunk: Columns) -> None:
        numbers = numbers_of(chunk[self.entry.column], self.entry.column)
        is_there = ~np.isnan(numbers)
        self._has_missing |= not is_there.all()
        numbers = numbers[is_there]
        if self.entry.buckets:
            self._keep(numbers)
        elif len(numbers):  # Chan, Golub, LeVeque 1983: moments of parts, joined
            numbers = scale(numbers, self.entry)
            count, mean = self._count + len(numbers), float(numbers.mean())
            off = mean - self._mean
            self._squares += float(np.square(numbers - mean).sum())
            self._squares += off * off * self._count * len(numbers) / count
            self._mean += off * len(numbers) / count
            self._count = count

    def _keep(self, numbers: np.ndarray) -> None:
        self._sample.append(numbers[:: self._step])
        self._kept += len(self._sample[-1])
        while self._kept > SAMPLE:
            self._step *= 2
            self._sample = [np.concatenate(self._sample)[::2]]
            self._kept = len(self._sample[0])

    def found(self) -> dict:
        entry = self.entry
        if entry.buckets:
            return {"edges": _edges(self._sample, entry.buckets, entry.column)}
        spread = float(np.sqrt(self._squares / self._count)) if self._count else 0.0
        indicator = self._has_missing if entry.indicator is None else entry.indicator
        return {"mean": self._mean, "std": spread or 1.0, "indicator": indicator}


def _edges(sample: Sequence[np.ndarray], buckets: int, column: str) -> tuple[float, ...]:
    numbers = np.concatenate([*sample, np.zeros(0)])
    if not len(numbers):
        raise DataError(f"{column} has no numbers to make ranges of", fix="take it out of the spec")
    wanted = np.arange(1, buckets) / buckets
    return tuple(np.unique(np.quantile(numbers, wanted)).tolist())
