"""Where text comes from: files of documents, or tables with a column of text and one of labels."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import xxhash

from deepseek.datasets import text_tables
from deepseek.datasets.open_source import expand_pattern, refuse_splits
from deepseek.datasets.text_file import check_pairs, read_documents, read_text_file
from deepseek.datasets.text_options import Column, DocumentPer, TextOptions
from deepseek.errors import ConfigError, DataError

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".conll")
_READ_BYTES = 1 << 20


class Record(NamedTuple):
    """A text as it stands: or its words; with its label, or one for each word; and a second."""

    text: str | list[str]
    label: str | int | list | None
    place: str
    pair: str | None = None


class TextSource:
    """All texts below a path, in order.

    Args:
        path: a file, a pattern, a folder of files of one kind, a folder with one folder of `.txt`
            files for each class (other `.txt` files beside these do not count), a data set saved by
            `save_to_disk`; or the texts themselves.
        options: what is known of the content.

    Raises:
        DataError: there is nothing that can be read.

    Attributes:
        layout: what the path was taken for, in words.
        class_names: names that the data bring along, or `None`.
    """

    def __init__(self, path: str | os.PathLike | Sequence[str], options: TextOptions) -> None:
        self._options = options
        self.class_names: tuple[str, ...] | None = None
        self._texts: tuple[str, ...] | None = None
        self._folder_labels: list[str] | None = None
        if not isinstance(path, str | os.PathLike):
            self._texts = _check_texts(path, options)
            self.path, self.layout, self.files = "the texts given", "texts in memory", []
            return
        self.path = os.fspath(path)
        place = Path(self.path).expanduser()
        self._saved = (place / "state.json").is_file() and (place / "dataset_info.json").is_file()
        if self._saved:
            self.layout = "saved Hugging Face data set"
            self.files = sorted(file for file in place.iterdir() if file.suffix == ".arrow")
            self.files += [place / "state.json", place / "dataset_info.json"]
        else:
            self.files, labels = _find_files(place, self.path, options)
            self._folder_labels = labels
            kind = self.files[0].suffix.lower()
            self.layout = "class folders of text" if labels else f"{kind} files"
            if labels:
                self.class_names = tuple(dict.fromkeys(labels))
        if options.label_column is not None and self.class_names is None:
            self.class_names = self._stored_class_names(place)

    def __iter__(self) -> Iterator[Record]:
        """Yield every text.

        Raises:
            DataError: a file is damaged, or lacks a column; names file and line.
        """
        options = self._options
        if self._texts is not None:
            for number, text in enumerate(self._texts):
                yield Record(text, None, f"text {number}")
            return
        if options.pair_column is not None and self.files[0].suffix.lower() in (".txt", ".conll"):
            raise DataError(
                f"{self.path} ({self.layout}) has no columns, so none of second sentences",
                fix="give a table, or leave pair_column out",
            )
        if self._saved:
            yield from _records(text_tables.read_saved(Path(self.path).expanduser(), options))
            return
        for number, file in enumerate(self.files):
            if self._folder_labels is not None:
                for text, place in read_documents(file, options):
                    yield Record(text, self._folder_labels[number], place)
            elif file.suffix.lower() == ".txt":
                yield from _labelled_lines(file, options)
            else:
                yield from _records(_READERS[file.suffix.lower()](file, options))

    def content_hash(self) -> str:
        """Return a hash of every file's name, bytes and class folder, or of the texts."""
        digest = xxhash.xxh3_128()
        for text in self._texts or ():
            encoded = text.encode()
            digest.update(f"{len(encoded)}\n".encode() + encoded)
        for number, file in enumerate(self.files):
            if self._folder_labels is not None:
                digest.update(os.fsencode(f"{self._folder_labels[number]}/"))
            digest.update(os.fsencode(file.name) + f":{file.stat().st_size}\n".encode())
            with open(file, "rb") as opened:
                while chunk := opened.read(_READ_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()

    def _stored_class_names(self, place: Path) -> tuple[str, ...] | None:
        column = str(self._options.label_column)
        names = None
        if self._saved:
            names = text_tables.saved_class_names(place, column)
        elif self.files[0].suffix.lower() == ".parquet":
            names = text_tables.parquet_class_names(self.files[0], column)
            for file in self.files[1:]:
                if text_tables.parquet_class_names(file, column) not in (None, names):
                    raise DataError(
                        f"{file} has other class names than {self.files[0]}, or in another order",
                        fix="write all files with one ClassLabel",
                    )
        return None if names is None else tuple(names)


def read_texts(
    path: str | os.PathLike,
    text_column: Column = "text",
    *,
    document_per: DocumentPer = "line",
    encoding: str = "utf-8",
) -> Iterator[str]:
    """Yield every text at a path, such as `train_tokenizer` takes.

    Args:
        path: as `TextDataset` takes it.
        text_column: of tables.
        document_per: what is yielded of a `.txt` file: all, a paragraph, or a line.
        encoding: of `.txt`, `.csv` and `.tsv` files.
    """
    options = TextOptions(text_column, document_per=document_per, encoding=encoding)
    for record in TextSource(path, options):
        yield record.text if isinstance(record.text, str) else " ".join(record.text)


def _check_texts(texts: Sequence[str], options: TextOptions) -> tuple[str, ...]:
    if options.label_column is not None:
        raise ConfigError(
            "texts in memory have no labels, which classification needs",
            fix="write a table with a column of texts and one of labels, and give its path",
        )
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigError(
                f"text {number} is a {type(text).__name__}", fix="give a list of strings"
            )
        check_pairs(text, f"text {number}")
    return tuple(texts)


def _labelled_lines(file: Path, options: TextOptions) -> Iterator[Record]:
    separator = options.label_separator
    if options.label_column is None:
        for text, place in read_documents(file, options):
            yield Record(text, None, place)
        return
    if separator is None:
        raise DataError(
            f"{file} is text without labels",
            fix="make a folder for each class, give a table, or say by label_separator what stands"
            " before the label at the end of each line",
        )
    for number, line in enumerate(read_text_file(file, options.encoding).split("\n"), 1):
        if not line.strip():
            continue
        text, found, label = line.rpartition(separator)
        if not found:
            raise DataError(
                f"{file}, line {number}: there is no label_separator={separator!r}",
                fix="correct the line, or label_separator",
            )
        yield Record(text, label.strip(), f"{file}, line {number}")


def _records(rows: Iterator[tuple]) -> Iterator[Record]:
    for row in rows:
        yield Record(*row)


_READERS: dict[str, Callable[[Path, TextOptions], Iterator[tuple]]] = {
    ".jsonl": text_tables.read_jsonl,
    ".csv": text_tables.read_csv,
    ".tsv": text_tables.read_csv,
    ".parquet": text_tables.read_parquet,
    ".conll": text_tables.read_conll,
}


def _find_files(
    place: Path, text: str, options: TextOptions
) -> tuple[list[Path], list[str] | None]:
    """Return the files, and for class folders the class of each."""
    if place.is_file():
        return _of_one_kind([place], text), None
    if place.is_dir():
        refuse_splits(place)
        files = [file for file in sorted(place.iterdir()) if file.suffix.lower() in SUFFIXES]
        has_classes = options.label_column is not None and not options.in_words
        if files and not (has_classes and _are_beside_classes(files, place, options)):
            return _of_one_kind(files, text), None
        if has_classes:
            return _class_folders(place)
        return _of_one_kind(sorted(place.rglob("*.txt")), text), None
    if re.search(r"[*?\[{]", text):
        return _of_one_kind(expand_pattern(str(place)), text), None
    raise DataError(f"{text} does not exist", fix="correct the path")


def _are_beside_classes(files: Sequence[Path], place: Path, options: TextOptions) -> bool:
    """Return whether files are texts without labels, such as a README, beside class folders."""
    if options.label_separator is not None or any(f.suffix.lower() != ".txt" for f in files):
        return False
    return len({file.parent for file in place.glob("[!.]*/*.txt")}) > 1


def _class_folders(place: Path) -> tuple[list[Path], list[str]]:
    folders = [e for e in sorted(place.iterdir()) if e.is_dir() and not e.name.startswith(".")]
    files, labels = [], []
    for folder in folders:
        found = sorted(folder.rglob("*.txt"))
        files += found
        labels += [folder.name] * len(found)
    return _of_one_kind(files, str(place)), labels


def _of_one_kind(files: Sequence[Path], text: str) -> list[Path]:
    kinds = sorted({file.suffix.lower() for file in files})
    if not files:
        raise DataError(
            f"{text} holds no text: no file ends in {', '.join(SUFFIXES)}", fix="correct the path"
        )
    if len(kinds) > 1:
        raise DataError(
            f"{text} holds files of several kinds: {', '.join(kinds)}",
            fix=f"give a pattern, such as {text.rstrip('/')}/*{kinds[0]}",
        )
    if kinds[0] not in SUFFIXES:
        raise DataError(
            f"{text}: files that end in {kinds[0] or 'nothing'} are not read as text",
            fix=f"give {', '.join(SUFFIXES)}, or a data set saved by save_to_disk",
        )
    return list(files)
