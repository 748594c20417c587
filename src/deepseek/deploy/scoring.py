"""Predictions of many samples, written to a file as they are made; killed, a run goes on.

`OUT.part` holds a line of JSON for what is predicted (model, inputs, options), then one for each
sample, in order. Run again, complete batches in it are kept, if they are of the samples that come
first now, too; so batches are cut as before, and the result is that of a run that was not
interrupted. At the end it becomes `OUT`: `.jsonl`, `.csv` or `.parquet`. Memory holds two batches,
whatever the number of samples.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from deepseek.datasets import read_texts
from deepseek.datasets.picture import SUFFIXES
from deepseek.errors import ConfigError, DataError
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.prediction import Prediction, read_picture
from deepseek.models.text_batches import text_batches
from deepseek.whole_file import replacing

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
OUTPUTS = (".jsonl", ".csv", ".parquet")
ROWS_AT_A_TIME = 4096
MAX_NAMED = 200
"""Characters of a sample in a message."""
_NUMBERS = re.compile(r"loss|(.+_)?(prob|value)(_\d+)?")
"""Columns of numbers; others are texts."""
Row = dict


@dataclass(frozen=True)
class Scoring:
    """How samples are predicted.

    Attributes:
        top_k: classes of a sample, best first.
        batch_size: samples computed at a time.
        is_strict: a sample that cannot be read ends it; else its row has the error.
        context: entered around each batch, such as autocast.
    """

    top_k: int = 1
    batch_size: int = 32
    is_strict: bool = False
    context: Callable[[], AbstractContextManager] = nullcontext


@dataclass(frozen=True)
class Outcome:
    """What a run has written: rows in all, and those with an error."""

    num_rows: int
    num_errors: int


def takes_texts(engine: ModelEngine) -> bool:
    """Return whether an engine is asked with texts."""
    return engine.spec is not None and engine.spec.tokenizer is not None


def find_items(
    engine: ModelEngine,
    paths: Iterable[Path],
    texts: Iterable[str] = (),
    *,
    text_column: str | int = "text",
    path_column: str = "path",
) -> Iterator[str]:
    """Yield what is to be predicted, in an order that is always the same.

    Args:
        engine: of pictures or of texts.
        paths: for texts, files or folders of them. For pictures: files, folders that are searched
            with what is in them, or tables with a column of paths, which are relative to the table.
        texts: to begin with.
        text_column: of tables of texts.
        path_column: of tables of pictures.

    Raises:
        DataError: a folder has no picture, or a table no such column.
    """
    yield from texts
    for path in paths:
        if takes_texts(engine):
            yield from read_texts(path, text_column)
        elif path.is_dir():
            yield from _pictures_in(path)
        elif path.suffix.lower() in TABLES:
            for each in read_texts(path, path_column):
                yield str(path.parent / each)
        else:
            yield str(path)


def score(engine: ModelEngine, items: Iterable[str], scoring: Scoring) -> Iterator[list[Row]]:
    """Yield the rows of a batch at a time; the next one is read while one is computed.

    A row has `file` or `text`, and `top`, a list of `label` and `prob`, or the `value` of a model
    of numbers; of several tasks `tasks`, with either for each; or `error`.

    Args:
        engine: with a data spec.
        items: paths of pictures, or texts.
        scoring: how.

    Raises:
        DataError: a sample cannot be read, and that is not allowed.
    """
    source = iter(items)
    kind = "text" if takes_texts(engine) else "file"
    with ThreadPoolExecutor() as pool:
        # a future of each sample of the batch that comes next
        def read_ahead() -> tuple[list[str], list]:
            batch = list(islice(source, scoring.batch_size))
            if kind == "text":
                return batch, batch
            return batch, [pool.submit(_read, item, engine, scoring) for item in batch]

        batch, reading = read_ahead()
        while batch:
            read = reading if kind == "text" else [each.result() for each in reading]
            following = read_ahead()
            yield _predict(engine, kind, batch, read, scoring)
            batch, reading = following


def predict_to_file(
    engine: ModelEngine,
    items: Iterable[str],
    output: str | Path,
    scoring: Scoring = Scoring(),  # frozen
    *,
    about: dict | None = None,
    on_rows: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Predict samples into a `.jsonl`, `.csv` or `.parquet` file, or go on with it.

    Args:
        engine: with a data spec.
        items: paths of pictures, or texts: the same in each run.
        output: of the result; it is there once all is done.
        scoring: how.
        about: what tells this run from others, JSON-able: one that is different is not gone on
            with.
        on_rows: told how many rows there are, those of an earlier run too.

    Raises:
        ConfigError: the file is there already, has another suffix, or was begun by another run, or
            with other samples.
        DataError: a sample cannot be read, and that is not allowed.
    """
    output = Path(output)
    part = part_of(output)
    check_output(output)
    head = json.dumps({**(about or {}), "top_k": scoring.top_k, "batch_size": scoring.batch_size})
    num_rows, num_errors = _begin(part, head, scoring.batch_size)
    rest = iter(items)
    _pass_over(part, rest)
    on_rows(num_rows)
    with open(part, "ab") as file:
        for rows in score(engine, rest, scoring):
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            file.flush()
            num_rows += len(rows)
            num_errors += sum("error" in row for row in rows)
            on_rows(num_rows)
        os.fsync(file.fileno())
    _finish(part, output, scoring.top_k)
    return Outcome(num_rows, num_errors)


def check_output(output: Path) -> None:
    """Refuse an output that cannot be written.

    Raises:
        ConfigError: it is there already, has another suffix, or its folder is missing.
    """
    if output.suffix.lower() not in OUTPUTS:
        raise ConfigError(
            f"output={output} has no suffix of a table", fix=f"end it with {', '.join(OUTPUTS)}"
        )
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent} is not a folder", fix=f"mkdir -p {output.parent}")
    if output.exists() and not part_of(output).exists():
        raise ConfigError(
            f"output={output} is there already", fix="give another name, or remove it"
        )


# -- samples ---------------------------------------------------------------------------------------


def holds_loose_pictures(folder: Path) -> bool:
    """Return whether pictures lie in a folder itself, and none in folders of classes."""
    entries = list(folder.iterdir()) if folder.is_dir() else []
    return any(_is_picture(entry.name) for entry in entries) and not any(
        entry.is_dir() for entry in entries
    )


def _is_picture(name: str) -> bool:
    return name.lower().rpartition(".")[2] in SUFFIXES


def _pictures_in(folder: Path) -> Iterator[str]:
    found = False
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in filter(_is_picture, sorted(files)):
            found = True
            yield os.path.join(root, name)
    if not found:
        raise DataError(f"there is no picture in {folder}", fix="give another folder")


def _read(item: str, engine: ModelEngine, scoring: Scoring) -> Tensor | str:
    """Return a picture as the model takes it, or what is wrong with it."""
    try:
        return read_picture(item, engine.spec)
    except DataError as error:
        if scoring.is_strict:
            raise
        return error.message


def _predict(
    engine: ModelEngine, kind: str, batch: list[str], read: list, scoring: Scoring
) -> list[Row]:
    rows: list[Row] = [{kind: item} for item in batch]
    for row, found in zip(rows, read, strict=True):
        if kind == "file" and isinstance(found, str):
            row["error"] = found
    names = engine.spec.class_names if engine.spec else ()
    with evaluating(engine), torch.inference_mode(), scoring.context():
        for places, inputs in _groups(engine, kind, read):
            found = engine.predict_batch(inputs, names, scoring.top_k)
            for at, said in zip(places, found, strict=True):
                rows[at] |= _said(said)
    return rows


def _said(said: object) -> Row:
    """Return what was predicted of a sample as a part of its row."""
    if isinstance(said, dict):
        return {"tasks": {name: _said(each) for name, each in said.items()}}
    if isinstance(said, Prediction):
        return {"top": [{"label": label, "prob": p} for label, p in said.top]}
    return {"value": said}


def _groups(engine: ModelEngine, kind: str, read: list) -> Iterator[tuple[list[int], Tensor]]:
    """Yield what can be computed together, of one shape, with its places in the batch."""
    if kind == "text":
        if engine.spec is not None:  # `kind` says that there is one
            yield list(range(len(read))), next(text_batches(read, engine.spec, len(read))[0])
        return
    shapes: dict[tuple, list[int]] = {}
    for at, picture in enumerate(read):
        if not isinstance(picture, str):
            shapes.setdefault(tuple(picture.shape), []).append(at)
    for places in shapes.values():
        yield places, torch.stack([read[at] for at in places])


# -- the file --------------------------------------------------------------------------------------


def part_of(output: Path) -> Path:
    """Return where what is done is kept until all of it is."""
    return output.with_name(output.name + ".part")


def _begin(part: Path, head: str, batch_size: int) -> tuple[int, int]:
    """Make the file, or cut it after its last complete batch; return rows and errors in it."""
    if not part.exists():
        with replacing(part) as draft:
            draft.write_text(head + "\n")
        return 0, 0
    with open(part, "r+b") as file:
        if file.readline().decode(errors="replace").rstrip("\n") != head:
            raise ConfigError(
                f"{part} was begun by another run: other inputs, model or options",
                fix="run it as then, or remove the file",
            )
        keep, num_rows, num_errors, errors = file.tell(), 0, 0, 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            errors += "error" in json.loads(line)
            if number % batch_size == 0:
                keep, num_rows, num_errors = file.tell(), number, errors
    os.truncate(part, keep)
    return num_rows, num_errors


def _rows_of(part: Path) -> Iterator[Row]:
    """Yield what is done."""
    with open(part, encoding="utf-8") as source:
        next(source)
        for line in source:
            yield json.loads(line)


def _pass_over(part: Path, items: Iterator[str]) -> None:
    """Take the samples that are done off those to come.

    Raises:
        ConfigError: they are not the ones that come first: some were added, removed or renamed.
    """
    for number, row in enumerate(_rows_of(part)):
        done = row["text"] if "text" in row else row["file"]
        found = next(items, None)
        if found != done:
            now = "there is none" if found is None else f"it is {found[:MAX_NAMED]!r}"
            raise ConfigError(
                f"{part} has {done[:MAX_NAMED]!r} as sample {number}, now {now}: the inputs have"
                " changed since it was begun",
                fix=f"put them back as they were, or rm {part} to begin anew",
            )


def _finish(part: Path, output: Path, top_k: int) -> None:
    """Write the output, in one atomic step, and remove the part."""
    if output.suffix.lower() == ".jsonl":
        write_table(output, _rows_of(part))
    else:
        # of a row with a prediction: one with an error does not say what the model answers
        columns = next((_flat(row, top_k) for row in _rows_of(part) if "error" not in row), {})
        empty = dict.fromkeys(columns)
        write_table(output, ({**empty, **_flat(row, top_k)} for row in _rows_of(part)))
    part.unlink()


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write rows with the same columns to a `.jsonl`, `.csv` or `.parquet` file, atomically."""
    with replacing(path) as draft:
        _WRITERS[path.suffix.lower()](draft, iter(rows))


def _write_jsonl(path: Path, rows: Iterator[Row]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _write_csv(path: Path, rows: Iterator[Row]) -> None:
    # file names that are no UTF-8 hold lone surrogates
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        first = next(rows, {})
        writer = csv.DictWriter(file, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerows(chain([first], rows) if first else [])


def _write_parquet(path: Path, rows: Iterator[Row]) -> None:
    first = next(rows, {})
    schema = pa.schema([(name, _type_of(name)) for name in first])
    rows = chain([first], rows) if first else rows
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, ROWS_AT_A_TIME)):
            batch = [{name: _writable(value) for name, value in row.items()} for row in batch]
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))


def _writable(value: object) -> object:
    is_text = isinstance(value, str)
    return value.encode("utf-8", "backslashreplace").decode() if is_text else value


def _type_of(column: str) -> pa.DataType:
    """Return the type of a column by its name: its first value may be missing."""
    if column == "index":
        return pa.int64()
    is_number = _NUMBERS.fullmatch(column) is not None
    return pa.float64() if is_number else pa.string()


def _flat(row: Row, top_k: int) -> Row:
    """Return a row with a column for each thing: `label`, `prob`, `label_2`, ..., and `error`."""
    kind = "text" if "text" in row else "file"
    flat = {kind: row[kind]}
    if "error" in row:
        return {**flat, "error": row["error"]}
    if "top" not in row:
        return {**flat, **_flat_tasks(row), "error": None}
    top = row["top"]
    for number in range(top_k):
        entry = top[number] if number < len(top) else {"label": None, "prob": None}
        ending = f"_{number + 1}" if number else ""
        flat |= {f"label{ending}": entry["label"], f"prob{ending}": entry["prob"]}
    return {**flat, "error": None}


def _flat_tasks(row: Row) -> Row:
    """Return a column for each thing that is said: `TASK_label` and `TASK_prob`, or `TASK_value`.

    Lists are written as JSON.
    """
    flat: Row = {}
    for name, said in row.get("tasks", {"": row}).items():
        begin = f"{name}_" if name else ""
        if "top" in said:
            best = said["top"][0]
            flat |= {f"{begin}label": best["label"], f"{begin}prob": best["prob"]}
        elif isinstance(said["value"], list):
            flat[f"{begin}labels"] = json.dumps(said["value"])
        else:
            flat[f"{begin}value"] = said["value"]
    return flat


_WRITERS = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}
