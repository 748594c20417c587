"""A first feature spec for a table, found by looking at its first rows; meant to be edited."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from deepseek.config import validate_settings
from deepseek.config.features import (
    CrossFeature,
    DenseFeature,
    FeatureSpec,
    LabelFeature,
    SequenceFeature,
    SparseFeature,
)
from deepseek.datasets.column_source import CRITEO_COLUMNS, ROWS_AT_ONCE, Columns, ColumnSource
from deepseek.datasets.feature_encoder import missing_feature_column
from deepseek.datasets.feature_values import decoded, distinct, numbers_of, token_of
from deepseek.datasets.text_numbers import read_number
from deepseek.errors import ConfigError, DataError

Labels = str | Sequence[str] | Mapping[str, LabelFeature | Mapping]
LABEL_NAMES = ("label", "click", "clicked", "target")
TIME_NAMES = ("timestamp", "time", "event_time", "datetime")
FEW_VALUES = 32
"""Whole numbers with at most so many values are categories."""
MANY_VALUES = 10_000
"""Of categories with more values in the sample, only those that occur `OFTEN` have ids."""
OFTEN = 5
NAMES_ROWS = 0.95
"""Categories with more different values among `MANY_ROWS` rows or more say which row it is."""
MANY_ROWS = 1000
ROWS_FOR_IDS = 20_000
"""Numbers have ids beside them in a table of so many rows; fewer are learnt by heart (on 7,200
rows of Criteo the AUC of DeepFM fell by 0.002 to 0.006)."""
RANGES = 32
"""Ids of a number that has too many values for each to have one."""
ODD = 0.1
"""Texts that are no numbers, as a share of the values of a column that seems to hold numbers."""
LONG_TAIL = 20
"""Numbers up to so many times their mean, whatever their signs, count by their logarithm."""
ROWS = 2 * ROWS_AT_ONCE
"""How many rows are looked at."""
_SECTION_OF = {SparseFeature: "sparse", DenseFeature: "dense", SequenceFeature: "sequence"}


def infer_features(
    source: ColumnSource,
    labels: Labels | None = None,
    *,
    crosses: Sequence[Sequence[str]] = (),
    ignore: Sequence[str] = (),
) -> FeatureSpec:
    """Return a spec for a table; nothing is fitted yet.

    Lists, and texts with `|` in them, are sequences. Texts, whole numbers with few values, and
    what is called `id` or `..._id`, are categories; where there are many values, rare ones share
    an id. All else are numbers; those with a long tail count by their logarithm, and in a table of
    20,000 rows or more they have an id beside: of each value (`NAME_value`), or, of many values,
    of ranges with as many rows each (`NAME_range`). Columns that are called as times are, hold
    only one value, or as categories another one in almost every row, are left out: what is learnt
    of a row by its name says nothing of the next.

    Args:
        source: the table.
        labels: the column to learn, several of them, or entries of the section `label` by task;
            by default the first of `LABEL_NAMES` that is there.
        crosses: pairs of sparse features.
        ignore: columns to leave out.

    Raises:
        DataError: a column that is named is not there, or there is no label.
    """
    label = _label_entries(source, labels)
    for name in [*ignore, *(entry.column for entry in label.values())]:
        if name not in source.columns:
            raise missing_feature_column(name, dict.fromkeys(source.columns))
    out = {*ignore, *TIME_NAMES, *(entry.column for entry in label.values())}
    wanted = [name for name in source.columns if name not in out]
    chunks = _first_rows(source, wanted)
    if not chunks:
        raise DataError(f"{source.path} has no rows", fix="give a table with rows")
    found: dict[str, dict] = {"sparse": {}, "dense": {}, "sequence": {}}
    is_criteo = source.columns == CRITEO_COLUMNS
    crossed = {name for pair in crosses for name in pair}
    for name in wanted:
        parts = [chunk[name] for chunk in chunks]
        column = pa.concat_arrays(_alike([decoded(part) for part in parts]))
        is_category = any(map(_is_category, parts))
        entry = _criteo_entry(name) if is_criteo else _entry(name, column, is_category)
        if entry is None:
            continue
        if isinstance(entry, SparseFeature) and name not in crossed and _names_rows(column):
            continue
        found[_SECTION_OF[type(entry)]][name] = entry
        if isinstance(entry, DenseFeature):
            for view, as_id in _id_beside(name, column).items():
                if view not in source.columns:
                    found[_SECTION_OF[type(as_id)]][view] = as_id
    cross = {"*".join(pair): CrossFeature(of=tuple(pair)) for pair in crosses}
    return FeatureSpec(**found, cross=cross, label=label)


def _label_entries(source: ColumnSource, labels: Labels | None) -> dict[str, LabelFeature]:
    if labels is None:
        named = [name for name in LABEL_NAMES if name in source.columns]
        if not named:
            raise ConfigError(
                f"{source.path} has no column {', '.join(LABEL_NAMES)}, so it is not known what is"
                " to be learnt",
                fix=f"name it by labels=...; there are {', '.join(source.columns)}",
            )
        labels = named[:1]
    if isinstance(labels, str):
        labels = [labels]
    if not isinstance(labels, Mapping):
        labels = {name: {} for name in labels}
    found = {}
    for name, given in labels.items():
        entry = given if isinstance(given, LabelFeature) else validate_settings(LabelFeature, given)
        found[name] = entry if entry.column else entry.model_copy(update={"column": name})
    return found


def _first_rows(source: ColumnSource, columns: Sequence[str]) -> list[Columns]:
    """Return chunks of so many rows as are looked at: files may have a few each."""
    chunks, num_rows = [], 0
    for chunk in source.chunks(columns):
        part = {name: column[: ROWS - num_rows] for name, column in chunk.items()}
        chunks.append(part)
        num_rows += max(map(len, part.values()), default=ROWS)
        if num_rows >= ROWS:
            break
    return chunks


def _alike(arrays: list[pa.Array]) -> list[pa.Array]:
    """Return arrays of one type: parts of a file of JSON may differ."""
    if len({array.type for array in arrays}) == 1:
        return arrays
    rest = [array for array in arrays if not pa.types.is_null(array.type)]
    if len({array.type for array in rest}) == 1:
        return rest
    kinds, types = [array.type for array in rest], pa.types
    if all(types.is_integer(k) or types.is_floating(k) or types.is_decimal(k) for k in kinds):
        return [array.cast(pa.float64(), safe=False) for array in rest]
    if all(types.is_string(kind) or types.is_primitive(kind) for kind in kinds):
        return [pa.array(map(token_of, array.to_pylist()), pa.string()) for array in rest]
    return rest[:1]


def _criteo_entry(name: str) -> SparseFeature | DenseFeature:
    return DenseFeature(log=True) if name.startswith("I") else SparseFeature()


def _is_category(column: pa.Array) -> bool:
    """Return whether the type of a column makes it categories: a category of pandas, or bytes."""
    kind, types = column.type, pa.types
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind)
    return types.is_dictionary(kind) or is_bytes or types.is_fixed_size_binary(kind)


def _entry(
    name: str, column: pa.Array, is_category: bool
) -> SparseFeature | DenseFeature | SequenceFeature | None:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return SequenceFeature()
    if pa.types.is_null(kind) or pa.types.is_timestamp(kind) or pa.types.is_struct(kind):
        return None
    tokens = [token_of(value) for value in distinct(column)[0]]
    known = {token for token in tokens if token is not None and token.lower() != "nan"}
    if len(known) < 2:
        return None
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    others = [token for token in known if not _is_number(token)] if is_text else []
    is_id = name.lower() == "id" or name.lower().endswith("_id")
    is_named = is_id or is_category
    if not is_named and len(known) > FEW_VALUES and 0 < len(others) <= ODD * len(known):
        warnings.warn(
            f"{name} is taken for a category: of its {len(known):,} values all are numbers but"
            f" {', '.join(map(repr, sorted(others)[:3]))}; empty such cells to have it as a"
            " number",
            stacklevel=4,
        )
    if not (others or is_category):
        numbers = numbers_of(column, name)
        numbers = numbers[~np.isnan(numbers)]
        is_whole = not (numbers % 1).any()
        if not (is_id or (is_whole and len(known) <= FEW_VALUES)):
            return _numbers_entry(numbers)
    elif is_text and sum("|" in token for token in known) * 2 > len(known):
        return SequenceFeature(separator="|")
    return SparseFeature(min_count=OFTEN) if len(known) > MANY_VALUES else SparseFeature()


def _numbers_entry(numbers: np.ndarray) -> DenseFeature:
    sizes = np.abs(numbers)
    return DenseFeature(log=bool(sizes.max() > LONG_TAIL * max(float(sizes.mean()), 1e-9)))


def _id_beside(name: str, column: pa.Array) -> dict[str, SparseFeature | DenseFeature]:
    """Return the entry of the id that a number has beside, by its name; none in a small table.

    A linear part, or a vector times a number, goes up or down with it; 0, -1 or 99,999 often mean
    something of their own.
    """
    if len(column) < ROWS_FOR_IDS:
        return {}
    num_values = len(distinct(column)[0])
    if num_values <= MANY_VALUES and num_values * OFTEN <= len(column):
        return {f"{name}_value": SparseFeature(column=name, min_count=OFTEN)}
    return {f"{name}_range": DenseFeature(column=name, buckets=RANGES)}


def _names_rows(column: pa.Array) -> bool:
    num_known = len(column) - column.null_count
    return num_known >= MANY_ROWS and len(distinct(column)[0]) > NAMES_ROWS * num_known


def _is_number(token: str) -> bool:
    try:
        read_number(token)
    except ValueError:
        return False
    return token.lower().lstrip("+-") not in ("nan", "inf", "infinity")
