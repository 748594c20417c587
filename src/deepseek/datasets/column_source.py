"""Tables as columns, some rows at a time: CSV, TSV, Parquet, JSON lines, or what is in memory.

Cells of text files are read as text: what they mean is for the feature spec to say, so that `007`
stays what it is. An empty cell is a missing value.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import xxhash

from deepseek.datasets.feature_values import token_of
from deepseek.datasets.table_reading import TableOptions
from deepseek.datasets.text_file import check_pairs
from deepseek.errors import ConfigError, DataError

Columns = dict[str, pa.Array]
CRITEO_COLUMNS = (
    "label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27)),
)  # fmt: skip
ROWS_AT_ONCE = 65536
_NO_HEADER = "; of a file without a header give column_names, or layout=criteo"
_BLOCK_BYTES = 1 << 23
_READ_BYTES = 1 << 24
_MIXED = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError)
"""Numbers and texts in one column, or whole numbers of more than 64 bits: all become texts."""
_SUFFIXES = {
    ".csv": ",", ".data": ",", ".test": ",", ".tsv": "\t", ".txt": "\t", ".dat": "\t",
    ".inter": "\t", ".item": "\t", ".user": "\t",
}  # fmt: skip
"""Files of text, and what stands between two cells. The last three are RecBole's: the kind of a
column stands behind its name, as in `user_id:token`."""


class ColumnSource:
    """A table that is read some rows at a time.

    Args:
        data: a path of a file, a folder or a pattern (files in the order of their names); an Arrow
            table; or a mapping from column to values.
        options: how files are read.

    Attributes:
        columns: their names.

    Raises:
        DataError: there is nothing to read, or files differ in their columns.
    """

    def __init__(
        self, data: str | os.PathLike | pa.Table | Mapping, options: TableOptions | None = None
    ) -> None:
        self._options = options or TableOptions()
        self._table: pa.Table | None = None
        self.files: tuple[Path, ...] = ()
        if isinstance(data, str | os.PathLike):
            self.path = str(data)
            self.files = _find_files(self.path)
            self.columns = self._columns_of(self.files[0])
        else:
            self.path, table = "a table in memory", _to_table(data)
            self._table, self.columns = table, tuple(table.column_names)
        if len(set(self.columns)) != len(self.columns):
            twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
            raise DataError(
                f"{self.path} has the column {twice[0]!r} twice",
                fix=f"name each column once{_NO_HEADER}",
            )

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[Columns]:
        """Yield some rows of every column, or of those that are named, in order.

        Raises:
            DataError: a file is damaged, or has other columns than the first.
        """
        for place, batch in self._batches(columns):
            wanted = batch.schema.names if columns is None else columns
            for name in wanted:
                if name not in batch.schema.names:
                    raise DataError(
                        f"{place} has no column {name!r}; its columns:"
                        f" {', '.join(batch.schema.names)}",
                        fix="give all files the same columns",
                    )
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                part = batch.slice(start, ROWS_AT_ONCE)
                yield {name: part.column(name) for name in wanted}

    def content_hash(self) -> str | None:
        """Return a hash of every file's name and bytes; `None` for what is in memory."""
        if self._table is not None:
            return None
        digest = xxhash.xxh3_128()
        for file in self.files:
            digest.update(os.fsencode(file.name) + f":{file.stat().st_size}\n".encode())
            with open(file, "rb") as opened:
                while chunk := opened.read(_READ_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()

    # -- files -------------------------------------------------------------------------------

    def _batches(self, columns: Sequence[str] | None) -> Iterator[tuple[str, pa.RecordBatch]]:
        if self._table is not None:
            for batch in self._table.to_batches():
                yield self.path, batch
            return
        for file in self.files:
            try:
                for batch in self._read(file, columns):
                    yield str(file), batch
            except (pa.ArrowInvalid, OSError) as error:
                given = "; if it has other columns, say column_names=NAME,NAME,..."
                raise DataError(
                    f"{file} is not readable: {str(error).splitlines()[0]}",
                    fix="mend the file: as many cells in every row as there are columns"
                    + (given if self._given_names() is not None else ""),
                ) from error

    def _read(self, file: Path, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        suffix = file.suffix.lower()
        if suffix == ".parquet":
            parquet = pq.ParquetFile(file)
            known = parquet.schema_arrow.names
            wanted = None if columns is None else [name for name in columns if name in known]
            # one thread: Arrow's pool does not survive the fork of a worker
            yield from parquet.iter_batches(ROWS_AT_ONCE, columns=wanted, use_threads=False)
        elif suffix in (".jsonl", ".ndjson"):
            yield from _read_jsonl(file, self.columns)
        else:
            yield from self._read_text(file)

    def _read_text(self, file: Path) -> Iterator[pa.RecordBatch]:
        names = list(self._columns_of(file))
        delimiter = self._delimiter(file)
        reader = pacsv.open_csv(
            file,
            read_options=pacsv.ReadOptions(
                use_threads=False, block_size=_BLOCK_BYTES, column_names=names,
                skip_rows=int(self._header_of(file) is not None),
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter, quote_char=False if delimiter == "\t" else '"',
                newlines_in_values=delimiter != "\t",
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=[""],
                strings_can_be_null=True,
            ),
        )  # fmt: skip
        yield from reader

    def _given_names(self) -> tuple[str, ...] | None:
        if self._options.layout == "criteo":
            return CRITEO_COLUMNS
        return self._options.column_names

    def _delimiter(self, file: Path) -> str:
        if self._options.delimiter is not None:
            return self._options.delimiter
        if self._options.layout == "criteo":
            return "\t"
        return _SUFFIXES[file.suffix.lower()]

    def _columns_of(self, file: Path) -> tuple[str, ...]:
        suffix = file.suffix.lower()
        if suffix == ".parquet":
            try:
                return tuple(pq.read_schema(file).names)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(
                    f"{file} is not readable Parquet: {error}", fix="get it again"
                ) from error
        if suffix in (".jsonl", ".ndjson"):
            return _jsonl_columns(file)
        if suffix not in _SUFFIXES and self._options.layout == "auto":
            raise DataError(
                f"{file} is of no kind that is known: its name ends with {suffix!r}",
                fix="give .csv, .tsv, .parquet or .jsonl, or layout=criteo",
            )
        names = self._header_of(file)
        if names is None:
            return tuple(self._given_names() or ())
        if not names or not all(names):
            raise DataError(
                f"{file}: a column has no name in line 1", fix=f"name every column{_NO_HEADER}"
            )
        return tuple(names)

    def _header_of(self, file: Path) -> list[str] | None:
        """Return the names in line 1 of a text file; `None` if it is a row.

        Where names were given, it is a header, with an order of its own, if more than half of its
        cells are such names: taken for a row, columns would be swapped without a word.
        """
        names = _first_cells(file, self._delimiter(file))
        if file.suffix.lower() in (".inter", ".item", ".user"):
            names = [name.partition(":")[0] for name in names]
        given = self._given_names()
        if given is None:
            return names
        return names if 2 * len(set(names).intersection(given)) > len(names) else None


def _first_cells(file: Path, delimiter: str) -> list[str]:
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as opened:
        line = opened.readline()
    if not line:  # of its bytes only a mark of their order
        raise _empty(file)
    return [cell.strip() for cell in next(csv.reader(io.StringIO(line), delimiter=delimiter))]


def _find_files(path: str) -> tuple[Path, ...]:
    place = Path(path)
    if place.is_dir():
        found = sorted(file for file in place.iterdir() if file.is_file() and file.name[0] != ".")
    elif place.exists():
        found = [place]
    else:
        found = sorted(map(Path, glob(path)))
    if not found:
        raise DataError(f"{path} does not exist, or is empty", fix="check the path")
    if empty := next((file for file in found if file.stat().st_size == 0), None):
        raise _empty(empty)
    return tuple(found)


def _empty(file: Path) -> DataError:
    return DataError(f"{file} is empty", fix="give a file with rows")


def _to_table(data: pa.Table | Mapping) -> pa.Table:
    if isinstance(data, pa.Table):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"data is a {type(data).__name__}, not a table",
            fix="give a path, a pyarrow.Table, or a mapping from column to values",
        )
    lengths = {str(name): len(values) for name, values in data.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns differ in length: {lengths}", fix="give each as many values")
    columns = {}
    for name, values in data.items():
        check_pairs(str(name), "a table in memory: the name of a column")
        try:
            columns[str(name)] = pa.table({str(name): values}).column(0)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(
                f"a column mixes kinds of values: {name!r}: {error}",
                fix="give each column one kind",
            ) from error
        except OverflowError as error:
            raise DataError(
                f"a table in memory: the column {name!r} holds a whole number of more than 64 bits",
                fix="give it as text, or mend it",
            ) from error
        except UnicodeEncodeError:
            for row, value in enumerate(values):
                _check_text(value, f"a table in memory, row {row}: the column {name!r}")
            raise
    return pa.table(columns)


def _jsonl_columns(file: Path) -> tuple[str, ...]:
    """Return the keys of the objects in the first lines, in the order they come in."""
    found: dict[str, None] = {}
    with open(file, "rb") as opened:
        for number, line in enumerate(opened, 1):
            place = f"{file}, line {number}"
            row = _json_object(line, place)
            for name in row.keys() - found.keys():
                check_pairs(name, f"{place}: the name of a column")
            found.update(dict.fromkeys(row))
            if number == 1000:
                break
    return tuple(found)


def _read_jsonl(file: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    rows: dict[int, dict] = {}  # by number of the line
    with open(file, "rb") as opened:
        for number, line in enumerate(opened, 1):
            if line.strip():
                rows[number] = _json_object(line, f"{file}, line {number}")
            if len(rows) == ROWS_AT_ONCE:
                yield _to_batch(rows, columns, file)
                rows.clear()
    if rows:
        yield _to_batch(rows, columns, file)


def _json_object(line: bytes, place: str) -> dict:
    if not line.strip():
        return {}
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: this is not JSON: {error}", fix="mend it") from error
    if not isinstance(row, dict):
        raise DataError(
            f"{place}: {str(row)[:40]} is a {type(row).__name__}, not an object",
            fix='write {"user": ..., "item": ..., "label": ...} on each line',
        )
    return row


def _to_batch(rows: Mapping[int, dict], columns: Sequence[str], file: Path) -> pa.RecordBatch:
    arrays = []
    for name in columns:
        values = [row.get(name) for row in rows.values()]
        try:
            try:
                arrays.append(pa.array(values))
            except _MIXED:
                arrays.append(pa.array([_as_text(value) for value in values]))
        except UnicodeEncodeError:
            for number, value in zip(rows, values, strict=True):
                _check_text(value, f"{file}, line {number}: the column {name!r}")
            raise
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _check_text(value: object, whose: str) -> None:
    check_pairs(json.dumps(value, ensure_ascii=False, default=str), whose)


def _as_text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, list | dict) else token_of(value)
