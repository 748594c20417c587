"""Cells of a table -> texts and numbers: one reading of a value, whether it comes from a file.

A column is an Arrow array, of a file, an array of numbers, or a list of Python values, of rows that
come one by one; or one value that all rows have, as the candidates of a request have their user.
What a value *is* is decided here and nowhere else, so that both ways agree to the bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from deepseek.errors import DataError


@dataclass(frozen=True)
class Repeated:
    """A column with one value in all rows, which is read once.

    Attributes:
        value: as a row has it.
        count: of rows.
    """

    value: object
    count: int

    def __len__(self) -> int:
        return self.count


Column = pa.Array | np.ndarray | list | Repeated
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def token_of(value: object) -> str | None:
    """Return a category as text, `None` for a missing one: blanks around it do not count.

    A number is the same category as float or decimal, a whole one also as integer or text.

    Raises:
        DataError: it is neither text nor number.
    """
    if value is None:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Decimal):
        if value.is_nan():
            return None
        is_whole = value.is_finite() and value == value.to_integral_value()
        return str(int(value)) if is_whole else repr(float(value))
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, bytes):
        return token_of(value.decode("utf-8", "backslashreplace"))
    if hasattr(value, "isoformat"):  # dates and times of Parquet
        return value.isoformat()  # pyright: ignore[reportAttributeAccessIssue]
    raise DataError(
        f"{str(value)[:40]!r} is a {type(value).__name__}, not a category",
        fix="give a text or a number; lists belong to a feature of the section sequence",
    )


def hash_of(token: str | None) -> int:
    """Return 64 bits that stand for a category (XXH3); 0 for a missing one."""
    if token is None:
        return 0
    return xxhash.xxh3_64_intdigest(token.encode("utf-8", "surrogatepass"))


def mix_hashes(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return a hash of several hashes and their order, uint64 (N,) each (SplitMix64)."""
    mixed = np.zeros(len(parts[0]), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            mixed = mixed + part + _GAMMA
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def decoded(column: Any) -> Any:
    """Return a column whose values stand in it, not in a dictionary beside it."""
    return column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column


def distinct(column: Column) -> tuple[list, np.ndarray]:
    """Return the values of a column, each of an array once, and where they stand, int64 (N,)."""
    if isinstance(column, np.ndarray):
        values, places = np.unique(column, return_inverse=True)
        return values.tolist(), places
    if isinstance(column, list):
        return column, np.arange(len(column))
    if isinstance(column, Repeated):
        return [column.value], np.zeros(column.count, np.int64)
    array: Any = decoded(column)
    encoded = array.dictionary_encode("encode")
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def numbers_of(column: Column, name: str) -> np.ndarray:
    """Return numbers, float64 (N,); NaN where one is missing. Times become seconds.

    Raises:
        DataError: a value is no number, or not finite.
    """
    if isinstance(column, Repeated):
        return np.repeat(numbers_of([column.value], name), column.count)
    if isinstance(column, np.ndarray) and column.dtype.kind in "iufb":
        numbers = column.astype(np.float64)
    elif isinstance(column, list | np.ndarray):
        numbers = np.array([_number(value, name) for value in column], np.float64)
        texts = [value if isinstance(value, str) else None for value in column]
        if any(texts):
            parsed = _from_text(_as_texts(texts, name), name)
            numbers = np.where(np.isnan(parsed), numbers, parsed)
    elif _is_text((array := decoded(column)).type):
        numbers = _from_text(array, name)
    else:
        numbers = _from_arrow(array, name)
    if np.isinf(numbers).any():
        row = int(np.flatnonzero(np.isinf(numbers))[0])
        raise DataError(
            f"{name}={numbers[row]} (row {row} of its part) is not finite",
            fix="mend the value, or leave the cell empty",
        )
    return numbers


def times_of(column: Column, name: str) -> np.ndarray:
    """Return times in seconds, float64 (N,); NaN where one is missing.

    They are numbers, times, or texts by ISO 8601, which are in UTC if they have no offset.

    Raises:
        DataError: a value is none of these.
    """
    try:
        return numbers_of(column, name)
    except DataError:
        array: Any = decoded(column)
        if not isinstance(array, pa.Array) or not _is_text(array.type):
            raise
    texts = _trimmed(array)
    try:
        return _from_arrow(texts.cast(pa.timestamp("us")), name)
    except pa.ArrowInvalid as error:
        try:
            return _from_arrow(texts.cast(pa.timestamp("us", "UTC")), name)  # all have offsets
        except pa.ArrowInvalid:
            raise DataError(
                f"{name} holds neither numbers nor times: {error}",
                fix="write times as 2024-05-01 12:00:00, all with an offset such as +02:00 or none",
            ) from error


def _number(value: object, name: str) -> float:
    if value is None or isinstance(value, str):  # texts are read together
        return math.nan
    if isinstance(value, int | float | Decimal | np.generic):
        try:
            return float(value)
        except OverflowError:  # a whole number of Python has no limit
            raise DataError(
                f"{name}: a whole number of {int(value).bit_length()} bits is too large",
                fix="mend the value, or leave the cell empty",
            ) from None
    raise DataError(
        f"{name}={str(value)[:40]!r} is a {type(value).__name__}, not a number",
        fix="give a number, or None where there is none",
    )


def _as_texts(texts: list[str | None], name: str) -> pa.Array:
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:  # JSON may hold half a surrogate pair
        raise DataError(
            f"{name}: a text that cannot be written as UTF-8 is not a number",
            fix="give a number, or None where there is none",
        ) from None


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _from_text(column: pa.Array, name: str) -> np.ndarray:
    trimmed = _trimmed(column)
    try:
        return _as_floats(trimmed.cast(pa.float64()))
    except pa.ArrowInvalid:
        raise _no_number(trimmed, name) from None


def _trimmed(column: pa.Array) -> pa.Array:
    trimmed = pc.utf8_trim_whitespace(column)  # pyright: ignore[reportAttributeAccessIssue]
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)  # pyright: ignore[reportAttributeAccessIssue]


def _no_number(column: pa.Array, name: str) -> DataError:
    for row, value in enumerate(column.to_pylist()):
        try:
            pa.array([value], pa.string()).cast(pa.float64())
        except pa.ArrowInvalid:
            return DataError(
                f"{name}={value[:40]!r} (row {row} of its part) is not a number",
                fix=f"mend the value, or make {name} a sparse feature",
            )
    return DataError(f"{name} is not a column of numbers", fix="make it a sparse feature")


def _from_arrow(column: pa.Array, name: str) -> np.ndarray:
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micro = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return _as_floats(micro.cast(pa.float64(), safe=False)) / 1e6
    if not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)):
        raise DataError(
            f"{name} is a column of {kind}, not of numbers", fix="make it a sparse feature"
        )
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    return _as_floats(column.cast(pa.float64(), safe=False))


def _as_floats(column: pa.Array) -> np.ndarray:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)


def lists_of(column: Column, separator: str | None, name: str) -> tuple[Column, np.ndarray]:
    """Return the items of a column of sequences in a row, and how many each has, int64 (N,).

    Raises:
        DataError: a cell is no sequence.
    """
    if isinstance(column, Repeated):
        cell = _items(column.value, separator, name)
        return cell * column.count, np.full(column.count, len(cell), np.int64)
    if isinstance(column, list):
        cells = [_items(cell, separator, name) for cell in column]
        return [item for cell in cells for item in cell], np.array(
            [len(cell) for cell in cells], np.int64
        )
    array: Any = decoded(column)
    if _is_text(array.type):
        if separator is None:
            raise _no_sequence(name, "text")
        array = pc.split_pattern(array, separator)  # pyright: ignore[reportAttributeAccessIssue]
    if pa.types.is_null(array.type):
        return pa.array([], pa.string()), np.zeros(len(array), np.int64)
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise _no_sequence(name, str(array.type))
    lengths = pc.fill_null(pc.list_value_length(array), 0)  # pyright: ignore[reportAttributeAccessIssue]
    return array.flatten(), lengths.to_numpy(zero_copy_only=False).astype(np.int64)


def _items(cell: object, separator: str | None, name: str) -> list:
    if cell is None:
        return []
    if isinstance(cell, str) and separator is not None:
        return cell.split(separator)
    if isinstance(cell, list | tuple):
        return list(cell)
    raise _no_sequence(name, type(cell).__name__)


def _no_sequence(name: str, found: str) -> DataError:
    return DataError(
        f"{name} holds {found}, not sequences",
        fix=f"give lists, or set the separator of sequence.{name}",
    )
