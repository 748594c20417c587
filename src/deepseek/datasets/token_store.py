"""Texts as tokens in one row on disk, made once for each content and tokenizer.

```
FOLDER/KEY/tokens.bin   uint16 or uint32: the tokens of all texts, one after the other
           starts.bin   int64: where each text begins, and the end of the last
           labels.bin   int64: a class number for each text, or for each token (-100: none);
                        or float64: a number for each text (NaN: none)
           store.json   dtypes, class names, sizes of the three
```
KEY is a hash of the files' bytes, the tokenizer and the options; the folder appears whole or not at
all. Tokens around a text ([CLS], [SEP]) are not stored; the one between two sentences is.
"""

import io
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from deepseek.datasets.cache_folder import cache_folder
from deepseek.datasets.kept_folder import SlowReport, make_beside, taking_place
from deepseek.datasets.source import name_labels, number_labels
from deepseek.datasets.text_numbers import read_number
from deepseek.datasets.text_options import TextOptions
from deepseek.datasets.text_source import Record, TextSource
from deepseek.datasets.tokenizer import Tokenizer
from deepseek.errors import DataError

FORMAT_VERSION = 3
TEXTS_AT_ONCE = 4096
IGNORE_INDEX = -100
_ARRAYS = ("tokens", "starts", "labels")


@dataclass(frozen=True)
class TokenStore:
    """Tokens of texts.

    Attributes:
        tokens: of all texts, (N,), uint16 or uint32.
        starts: where each text begins, and the end, int64 (D + 1,).
        labels: class numbers, int64 (D,) or (N,), or numbers, float64 (D,); empty without labels.
        class_names: name of class 0, 1, ...
    """

    tokens: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 (D,)."""
        return np.diff(self.starts)


def open_store(
    source: TextSource,
    tokenizer: Tokenizer,
    options: TextOptions,
    class_names: Sequence[str] | None,
    cache: str | os.PathLike,
    document_token: int | None = None,
) -> TokenStore:
    """Return the tokens of a source: from the cache, or made now.

    Args:
        source: the texts.
        tokenizer: turns them into tokens.
        options: how the source is read.
        class_names: the classes, or `None`: those of the data.
        cache: "auto" (`DEEPSEEK_CACHE`, or the user's cache folder), "off" (in memory), or a
            folder.
        document_token: stands before each text, and after the last; none by default.

    Raises:
        DataError: there are no texts, a text is damaged, or a label fits no class.
    """
    folder = cache_folder(cache, "tokens")
    if folder is None:
        return _make_in_memory(source, tokenizer, options, class_names, document_token)
    words = [FORMAT_VERSION, source.content_hash(), tokenizer.to_json(), asdict(options)]
    words += [list(class_names or ()), document_token]
    described = json.dumps(words, sort_keys=True)
    place = folder / xxhash.xxh3_128_hexdigest(described.encode())
    if (place / "store.json").is_file() and (found := _read(place)) is not None:
        return found
    try:
        temporary = make_beside(folder)
    except OSError as error:
        warnings.warn(f"tokens are not cached: {folder} cannot be written: {error}", stacklevel=2)
        return _make_in_memory(source, tokenizer, options, class_names, document_token)
    with taking_place(temporary, place, "store.json"):
        with open(temporary / "tokens.bin", "wb") as file:
            starts, labels, names = _make(
                source, tokenizer, options, class_names, document_token, file
            )
        _write(temporary, _dtype_for(tokenizer), starts, labels, names)
    found = _read(place)
    if found is None:
        raise DataError(f"{place} was written, and does not read", fix="set cache to off")
    return found


def _make(
    source: TextSource,
    tokenizer: Tokenizer,
    options: TextOptions,
    class_names: Sequence[str] | None,
    document_token: int | None,
    file: BinaryIO,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Write the tokens of everything to a file; return starts, labels and class names."""
    opening = np.array([] if document_token is None else [document_token], np.int64)
    dtype = _dtype_for(tokenizer)
    starts, labels = [0], []
    report = SlowReport(f"tokenising {source.path}", f"tokenised {source.path}", "tokens")
    records = iter(source)
    while chunk := list(islice(records, TEXTS_AT_ONCE)):
        texts, marks = _encode(chunk, tokenizer, options)
        for record, tokens, words in zip(chunk, texts, marks, strict=True):
            if len(tokens) == 0 and options.label_column is not None:
                raise DataError(
                    f"{record.place}: the text is empty, and has the label {record.label!r}",
                    fix="remove the line",
                )
            file.write(opening.astype(dtype).tobytes())
            file.write(tokens.astype(dtype).tobytes())
            starts.append(starts[-1] + len(opening) + len(tokens))
            if options.label_column is not None:
                labels += _labels_of(record, words)
        report.note(starts[-1])
    report.end(starts[-1])
    file.write(opening.astype(dtype).tobytes())
    if starts[-1] <= len(opening) * (len(starts) - 1):
        raise DataError(f"{source.path} ({source.layout}) holds no text", fix="check the path")
    numbers, names = np.zeros(0, np.int64), ()
    if options.label_column is not None:
        if options.has_numbers:
            numbers = _read_numbers(labels, source.path)
        else:
            numbers, names = _number(labels, source, class_names, may_lack=options.in_words)
    return np.array(starts, np.int64), numbers, tuple(names)


def _make_in_memory(
    source: TextSource,
    tokenizer: Tokenizer,
    options: TextOptions,
    class_names: Sequence[str] | None,
    document_token: int | None,
) -> TokenStore:
    buffer = io.BytesIO()
    starts, labels, names = _make(source, tokenizer, options, class_names, document_token, buffer)
    tokens = np.frombuffer(buffer.getbuffer(), _dtype_for(tokenizer))
    return TokenStore(tokens, starts, labels, names)


def _dtype_for(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def _encode(
    chunk: list[Record], tokenizer: Tokenizer, options: TextOptions
) -> tuple[list[np.ndarray], Sequence[np.ndarray | None]]:
    """Return tokens, and where texts are words the number of each token's word."""
    if options.in_words:
        found = tokenizer.encode_words([list(record.text) for record in chunk])
        return [each.tokens for each in found], [each.words for each in found]
    firsts = tokenizer.encode([str(record.text) for record in chunk], is_whole=False)
    if options.pair_column is None:
        return firsts, [None] * len(chunk)
    between = [tokenizer.separator_token]
    seconds = tokenizer.encode([str(record.pair) for record in chunk], is_whole=False)
    joined = [np.concatenate([a, between, b]) for a, b in zip(firsts, seconds, strict=True)]
    return joined, [None] * len(chunk)


def _labels_of(record: Record, words: np.ndarray | None) -> list:
    if words is None:
        return [record.label]
    begins = np.diff(words, prepend=-1) > 0
    given = list(record.label) if isinstance(record.label, list) else []
    if int(begins.sum()) < len(given):
        bare = sorted(set(range(len(given))) - set(words.tolist()))
        raise DataError(
            f"{record.place}: the word {record.text[bare[0]]!r} has a label and no token",
            fix="remove the word, or choose another tokenizer",
        )
    return [given[w] if b else None for w, b in zip(words.tolist(), begins.tolist(), strict=True)]


def _read_numbers(labels: list, path: str) -> np.ndarray:
    """Return labels as numbers, float64, NaN where there is none."""
    found = np.full(len(labels), np.nan)
    for row, label in enumerate(labels):
        if label is None or label == "":
            continue
        try:
            found[row] = read_number(label)
        except ValueError as error:
            raise DataError(
                f"{path}, text {row + 1}: the label {str(label)[:40]!r} is not a number",
                fix="choose another label_column, or the task sequence_classification",
            ) from error
    if len(found) and np.isnan(found).all():
        raise DataError(f"{path}: every label is empty", fix="choose another label_column")
    return found


def _number(
    labels: list, source: TextSource, class_names: Sequence[str] | None, *, may_lack: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels as class numbers, -100 where there is none, and the class names."""
    own, path = source.class_names, source.path
    if class_names is None:
        class_names = own
    has_label = np.array([label is not None for label in labels])
    if len(labels) and class_names is None and not has_label.any():
        raise DataError(f"{path}: every label is empty", fix="choose another label_column")
    if not may_lack and not has_label.all():
        raise DataError(
            f"{path}, text {int(has_label.argmin()) + 1}: the label is empty",
            fix="give every text a label, or leave the text out",
        )
    given = [label for label in labels if label is not None]
    if own is not None and class_names is not None:
        given = name_labels(given, own, class_names, path)
    found, names = number_labels(given, class_names, path)
    if has_label.all():
        return found, names
    numbers = np.full(len(labels), IGNORE_INDEX, np.int64)
    numbers[has_label] = found
    return numbers, names


def _write(
    folder: Path, dtype: np.dtype, starts: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> None:
    starts.tofile(folder / "starts.bin")
    labels.tofile(folder / "labels.bin")
    content = {
        "format_version": FORMAT_VERSION,
        "dtype": dtype.name,
        "label_dtype": labels.dtype.name,
        "class_names": list(names),
        "num_bytes": {name: (folder / f"{name}.bin").stat().st_size for name in _ARRAYS},
    }
    (folder / "store.json").write_text(json.dumps(content), encoding="utf-8")


def _read(folder: Path) -> TokenStore | None:
    """Map a store into memory; `None` if it is not whole."""
    try:
        content = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / f"{name}.bin").stat().st_size for name in _ARRAYS}
        if content["format_version"] != FORMAT_VERSION or content["num_bytes"] != sizes:
            return None
        tokens = np.memmap(folder / "tokens.bin", np.dtype(content["dtype"]), "r")
        starts = np.fromfile(folder / "starts.bin", np.int64)
        label_dtype = np.dtype(content.get("label_dtype", "int64"))
        labels = np.fromfile(folder / "labels.bin", label_dtype)
        return TokenStore(tokens, starts, labels, tuple(content["class_names"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # made anew
