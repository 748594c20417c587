"""Tables with a column of text and one of labels: JSON lines, CSV, TSV, Parquet, Arrow, CoNLL.

Every reader yields (text or words, label or labels or None, place, second text or None).
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deepseek.datasets.index_source import missing_column
from deepseek.datasets.table_source import map_saved_dataset, names_of, parse_features
from deepseek.datasets.text_file import check_pairs, read_text_file
from deepseek.datasets.text_options import TextOptions
from deepseek.errors import DataError

Row = tuple[str | list[str], str | int | list | None, str, str | None]
BATCH_ROWS = 4096
MAX_CELL = 2**31 - 1


def read_jsonl(file: Path, options: TextOptions) -> Iterator[Row]:
    """Yield the rows of a file with a JSON object on each line."""
    with open(file, "rb") as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            place = f"{file}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: this is not JSON: {error}", fix="mend it") from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{place}: {str(row)[:40]} is a {type(row).__name__}, not an object",
                    fix='write {"text": "...", "label": "..."} on each line',
                )
            if b"\\u" in line:
                for column in options.columns.values():
                    text = json.dumps(row.get(column), ensure_ascii=False)
                    check_pairs(text, f"{place}: the column {column!r}")
            yield _checked(row, list(row), options, place)


def read_csv(file: Path, options: TextOptions) -> Iterator[Row]:
    """Yield the rows of a `.csv` (quotes as usual) or `.tsv` (a line is a row, quotes are text)."""
    content = read_text_file(file, options.encoding)
    is_tabs = file.suffix.lower() == ".tsv"
    limit = csv.field_size_limit(MAX_CELL)  # of this process, so it is put back
    try:
        reader = csv.reader(
            io.StringIO(content, newline=""),
            delimiter="\t" if is_tabs else ",",
            quoting=csv.QUOTE_NONE if is_tabs else csv.QUOTE_MINIMAL,
            strict=not is_tabs,
        )
        has_header = not isinstance(options.text_column, int)
        columns: list = next(reader, []) if has_header else []
        for cells in reader:
            if not cells:
                continue
            place = f"{file}, line {reader.line_num}"
            names = columns if has_header else list(range(len(cells)))
            if has_header and len(cells) != len(columns):
                raise DataError(
                    f"{place}: {len(cells)} cells under {len(columns)} column names",
                    fix="mend the line; a text with a delimiter in it stands in quotes",
                )
            yield _checked(dict(zip(names, cells, strict=True)), names, options, place)
    except csv.Error as error:
        raise DataError(f"{file} is no table: {error}", fix="mend or convert it") from error
    finally:
        csv.field_size_limit(limit)


def read_parquet(file: Path, options: TextOptions) -> Iterator[Row]:
    """Yield the rows of a Parquet file; only the columns in use are read."""
    try:
        parquet = pq.ParquetFile(file)
        columns = parquet.schema_arrow.names
        wanted = _wanted(columns, options, str(file))
        start = 0
        # one thread: Arrow's pool does not survive the fork of a worker
        for batch in parquet.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
            yield from _rows(batch, columns, options, str(file), start)
            start += len(batch)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not readable Parquet: {error}", fix="get it again") from error


def read_saved(folder: Path, options: TextOptions) -> Iterator[Row]:
    """Yield the rows of a data set saved by `save_to_disk`."""
    tables, _ = map_saved_dataset(folder)
    for place, table in tables:
        start = 0
        wanted = _wanted(table.schema.names, options, place)
        for batch in table.select(wanted).to_batches(BATCH_ROWS):
            yield from _rows(batch, table.schema.names, options, place, start)
            start += len(batch)


def read_conll(file: Path, options: TextOptions) -> Iterator[Row]:
    """Yield sentences: a word a line, its label in the last column, an empty line between them."""
    words: list[str] = []
    labels: list[str] = []
    begin = 1
    lines = read_text_file(file, options.encoding).split("\n")
    for number, line in enumerate([*lines, ""], 1):
        cells = line.split()
        if cells and cells[0] != "-DOCSTART-":
            if len(cells) < 2:
                raise DataError(
                    f"{file}, line {number}: {line!r} has a word, and no label",
                    fix="write the word and its label, with a blank between them",
                )
            begin = begin if words else number
            words.append(cells[0])
            labels.append(cells[-1])
        elif words and not cells:
            yield words, labels, f"{file}, line {begin}", None
            words, labels = [], []


def parquet_class_names(file: Path, column: str) -> list[str] | None:
    """Return the class names in the Hugging Face metadata of a Parquet file."""
    try:
        metadata = pq.read_schema(file).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not readable Parquet: {error}", fix="get it again") from error
    return names_of(parse_features(metadata.get(b"huggingface"), file), column)


def saved_class_names(folder: Path, column: str) -> list[str] | None:
    """Return the class names of a saved data set."""
    return names_of(map_saved_dataset(folder)[1], column)


def _wanted(columns: Sequence[str], options: TextOptions, place: str) -> list[str]:
    wanted = options.columns
    for argument, column in wanted.items():
        if column not in columns:
            raise missing_column(place, str(column), columns, argument)
    return [str(column) for column in wanted.values()]


def _rows(
    batch: pa.RecordBatch, columns: Sequence[str], options: TextOptions, place: str, start: int
) -> Iterator[Row]:
    for number, row in enumerate(batch.to_pylist(), start):
        yield _checked(row, columns, options, f"{place}, row {number}")


def _checked(row: dict, columns: Sequence, options: TextOptions, place: str) -> Row:
    """Return text and label of a row.

    Raises:
        DataError: a column is missing, or holds something else.
    """
    text_column, label_column = options.text_column, options.label_column
    for argument, column in options.columns.items():
        if column not in row:
            raise missing_column(place, str(column), list(map(str, columns)), argument)
    text = row[text_column]
    if not options.in_words:
        pair_column = options.pair_column
        for column in (text_column, pair_column):
            if column is not None and not isinstance(value := row[column], str):
                argument = "text_column" if column == text_column else "pair_column"
                raise DataError(
                    f"{place}: {column}={str(value)[:40]!r} is a {type(value).__name__}, not a"
                    " text",
                    fix=f"choose the column that holds the text by {argument}=...",
                )
        label = None if label_column is None else row[label_column]
        return text, label, place, None if pair_column is None else row[pair_column]
    labels = None if label_column is None else row[label_column]
    if not isinstance(text, list) or not all(isinstance(word, str) for word in text):
        raise DataError(
            f"{place}: {text_column}={str(text)[:40]!r} is not a list of words",
            fix="choose the column that holds the words by text_column=...",
        )
    if not isinstance(labels, list) or len(labels) != len(text):
        count = len(labels) if isinstance(labels, list) else "no"
        raise DataError(
            f"{place}: {len(text)} words and {count} labels",
            fix=f"give every word a label in {label_column}",
        )
    return text, labels, place, None
