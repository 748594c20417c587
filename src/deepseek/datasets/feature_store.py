"""Features of a table, computed once: in a folder that is mapped into memory, or in memory.

```
FOLDER/KEY/sparse.npy          int32 or int64 (N, S)
           dense.npy           float32 (N, D)
           labels.npy          float32 (N, T)
           time.npy            float64 (N,), where there is a column of times
           sequence_K.npy      int64, ids of all rows one after the other
           starts_K.npy        int64 (N + 1,)
           store.json          the fitted feature spec
```
KEY is a hash of the files' bytes, of how they are read and of the spec. The folder appears whole
or not at all; a table is never in memory as a whole.

Shapes: N rows, S ids, D numbers, T labels.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from deepseek.config.features import FeatureSpec
from deepseek.datasets.column_source import ColumnSource
from deepseek.datasets.feature_encoder import (
    FeatureEncoder,
    Features,
    missing_feature_column,
)
from deepseek.datasets.feature_fitting import fit_features
from deepseek.datasets.feature_values import distinct, times_of, token_of
from deepseek.datasets.kept_folder import SlowReport, make_beside, taking_place
from deepseek.errors import ConfigError, DataError

FORMAT_VERSION = 4


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """Features, labels and times of all rows.

    Attributes:
        spec: fitted.
        arrays: as listed above.
    """

    spec: FeatureSpec
    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.arrays["labels"])

    def rows(self, rows: np.ndarray) -> Features:
        """Return the features of some rows, int64 (B,)."""
        sequences = {}
        for number, name in enumerate(self.spec.sequence):
            starts = self.arrays[f"starts_{number}"]
            begin, lengths = starts[rows], starts[rows + 1] - starts[rows]
            inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            ids = self.arrays[f"sequence_{number}"][np.repeat(begin, lengths) + inside]
            sequences[name] = np.asarray(ids, np.int64), lengths
        return Features(
            self.arrays["sparse"][rows].astype(np.int64),
            np.asarray(self.arrays["dense"][rows]),
            sequences,
        )


def open_features(
    source: ColumnSource,
    spec: FeatureSpec,
    time_column: str | None,
    folder: Path | None,
    how: Sequence = (),
) -> FeatureStore:
    """Return the features of a table: from `folder`, or computed now; the spec is fitted to it.

    Args:
        source: the table.
        spec: what its columns mean; what is fitted in it already stays.
        time_column: when a row happened, in seconds, as times, or as texts of ISO 8601.
        folder: where they are kept, `None`: in memory.
        how: what else they depend on, JSON-able: how files are read.

    Raises:
        ConfigError: there is no label.
        DataError: a column is missing, or holds a value of another kind; or the spec is not fitted,
            and no value of a label is a yes. A fitted one is that of a model: this warns.
    """
    if not spec.label:
        raise ConfigError("the feature spec has no label", fix="add the section label")
    needed = [*spec.columns, *(entry.column for entry in spec.label.values())]
    for column in [*needed, *([] if time_column is None else [time_column])]:
        if column not in source.columns:
            raise missing_feature_column(column, dict.fromkeys(source.columns))
    store = _open(source, spec, time_column, folder, how)
    if spec.is_fitted:
        num_yes = (store.arrays["labels"] == 1).sum(0)
        if (found := _other_words(source, spec, num_yes)) is not None:
            warnings.warn(f"{found[0]}: all of them count as a no", stacklevel=2)
    return store


def _open(
    source: ColumnSource,
    spec: FeatureSpec,
    time_column: str | None,
    folder: Path | None,
    how: Sequence,
) -> FeatureStore:
    known = source.content_hash() if folder is not None else None
    if folder is None or known is None:
        return _make(source, spec, time_column, None)
    words = [FORMAT_VERSION, known, spec.to_json(), time_column, list(source.columns), list(how)]
    place = folder / xxhash.xxh3_128_hexdigest(json.dumps(words, sort_keys=False).encode())
    if (found := _read(place)) is not None:
        return found
    try:
        temporary = make_beside(folder)
    except OSError as error:
        warnings.warn(f"features are not kept: {folder} cannot be written: {error}", stacklevel=2)
        return _make(source, spec, time_column, None)
    with taking_place(temporary, place, "store.json"):
        _make(source, spec, time_column, temporary)
    found = _read(place)
    if found is None:
        raise DataError(f"{place} was written, and does not read", fix="set cache to off")
    return found


def _make(
    source: ColumnSource, spec: FeatureSpec, time_column: str | None, folder: Path | None
) -> FeatureStore:
    is_new = not spec.is_fitted
    spec = fit_features(spec, source)
    parts = _Parts(folder)
    report = SlowReport(f"reading {source.path}", f"read {source.path}", "rows")
    num_rows, num_yes = 0, np.zeros(len(spec.label))
    for features, labels, times in _encoded(source, spec, time_column):
        num_rows += len(labels)
        num_yes += (labels == 1).sum(0)
        is_small = max([0, *spec.ids.values()]) < 2**31 and 0 not in spec.ids.values()
        parts.add("sparse", features.sparse.astype(np.int32 if is_small else np.int64))
        parts.add("dense", features.dense)
        parts.add("labels", labels)
        if times is not None:
            parts.add("time", times)
        for number, (ids, lengths) in enumerate(features.sequences.values()):
            parts.add(f"sequence_{number}", ids)
            parts.add(f"lengths_{number}", lengths)
        report.note(num_rows)
    if num_rows == 0:
        raise DataError(f"{source.path} has no rows", fix="give a table with rows")
    if is_new and (found := _other_words(source, spec, num_yes)) is not None:
        raise DataError(found[0], fix=found[1])
    report.end(num_rows)
    return parts.finish(spec)


def _other_words(
    source: ColumnSource, spec: FeatureSpec, num_yes: np.ndarray
) -> tuple[str, str] | None:
    """Return what to say, and the way out, if a label may be in other words than the spec's.

    That is one without a yes, while its rows have several values.
    """
    for count, (name, entry) in zip(num_yes.tolist(), spec.label.items(), strict=True):
        if count or entry.positive is None or entry.negative is not None:
            continue
        found: set[str | None] = set()
        for chunk in source.chunks([entry.column]):
            found.update(map(token_of, distinct(chunk[entry.column])[0]))
        found.discard(None)
        if len(found) > 1:
            shown = ", ".join(sorted(map(repr, found))[:5])
            return (
                f"{source.path}: no row has one of the values that mean yes in the label {name}"
                f" ({', '.join(entry.positive)}); it has {shown}",
                f"correct label.{name}.positive, or give label.{name}.negative if all are a no",
            )
    return None


def _encoded(
    source: ColumnSource, spec: FeatureSpec, time_column: str | None
) -> Iterator[tuple[Features, np.ndarray, np.ndarray | None]]:
    encoder = FeatureEncoder(spec)
    names = [*spec.columns, *(entry.column for entry in spec.label.values())]
    wanted = list(dict.fromkeys(names + ([] if time_column is None else [time_column])))
    for chunk in source.chunks(wanted):
        times = None
        if time_column is not None:
            times = times_of(chunk[time_column], time_column)
            if np.isnan(times).any():
                raise DataError(
                    f"{source.path}: {time_column} is missing in {int(np.isnan(times).sum())} rows",
                    fix="give every row a time, or leave time_column out",
                )
        yield encoder.encode(chunk), encoder.labels(chunk), times


class _Parts:
    """Arrays that grow by rows: in files, or in memory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._parts: dict[str, list[np.ndarray]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, np.dtype] = {}

    def add(self, name: str, part: np.ndarray) -> None:
        count = self._shapes.get(name, (0,))[0]
        self._shapes[name] = (count + len(part), *part.shape[1:])
        self._dtypes[name] = part.dtype
        if self._folder is None or name.startswith("lengths_"):
            self._parts.setdefault(name, []).append(part)
            return
        with open(self._folder / f"{name}.raw", "ab") as file:
            file.write(np.ascontiguousarray(part).data)

    def finish(self, spec: FeatureSpec) -> FeatureStore:
        arrays = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        for name in [name for name in arrays if name.startswith("lengths_")]:
            starts = np.concatenate([[0], np.cumsum(arrays.pop(name))]).astype(np.int64)
            arrays[name.replace("lengths", "starts")] = starts
        if self._folder is None:
            return FeatureStore(spec, arrays)
        for name in self._shapes.keys() - self._parts.keys():
            self._shaped(name, self._folder)
        for name, array in arrays.items():
            np.save(self._folder / f"{name}.npy", array, allow_pickle=False)
        (self._folder / "store.json").write_text(json.dumps(spec.to_json()), encoding="utf-8")
        return FeatureStore(spec, arrays)

    def _shaped(self, name: str, folder: Path) -> None:
        """Put the header of a `.npy` file before the numbers."""
        shape, dtype = self._shapes[name], self._dtypes[name]
        about = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        with open(folder / f"{name}.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, about)
            with open(folder / f"{name}.raw", "rb") as raw:
                shutil.copyfileobj(raw, file, 1 << 24)
            file.flush()
            os.fsync(file.fileno())
        (folder / f"{name}.raw").unlink()


def _read(place: Path) -> FeatureStore | None:
    try:
        spec = FeatureSpec.from_json(json.loads((place / "store.json").read_text(encoding="utf-8")))
        arrays = {
            file.stem: np.load(file, mmap_mode="r", allow_pickle=False)
            for file in sorted(place.glob("*.npy"))
        }
    except (OSError, ValueError, ConfigError):
        return None  # made anew
    return FeatureStore(spec, arrays)
