"""Pictures in tar shards of the WebDataset layout: `0001.jpg` beside `0001.cls` or `0001.json`.

The headers are read once; a picture is then one read at its offset, in any order. Nothing is
extracted: the names in an archive are keys, and never become paths.
"""

import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from typing_extensions import override

from deepseek.datasets.picture import SUFFIXES
from deepseek.datasets.source import ImageSource, number_labels
from deepseek.errors import DataError

_MAX_OPEN = 128  # shards: a process may often open no more than 1024 files
_MAX_LABEL_BYTES = 2**20


class _Entry(NamedTuple):
    shard: int
    name: str
    offset: int
    size: int


class _OpenFile:
    """Is closed with its last use: where one thread forgets it, another may still read."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class TarSource(ImageSource):
    """The pictures of shards, in the order of shards and of their entries.

    Args:
        shards: uncompressed tar files.
        path: as the user wrote it.
        class_names: forces the classes.
        label_key: key of the label in a `.json`.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        path: str,
        class_names: Sequence[str] | None = None,
        label_key: str = "label",
    ) -> None:
        self._shards = [str(shard) for shard in shards]
        self._files: dict[int, _OpenFile] = {}
        self._entries: list[_Entry] = []
        labels: list[str | int] = []
        for number, shard in enumerate(shards):
            for picture, label in _scan(number, shard):
                self._entries.append(picture)
                content = self._read_entry(label) if label.size <= _MAX_LABEL_BYTES else None
                labels.append(_parse_label(content, label, shard, label_key))
        if not labels:
            raise DataError(f"{path}: the shards hold no pictures", fix="check the path")
        targets, names = number_labels(labels, class_names, path)
        super().__init__("tar shards", path, targets, names)

    @override
    def read(self, index: int) -> bytes:
        return self._read_entry(self._entries[index])

    @override
    def describe(self, index: int) -> str:
        entry = self._entries[index]
        return f"{self._shards[entry.shard]}:{entry.name}"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}  # an open file means nothing to a spawned worker

    def _read_entry(self, entry: _Entry) -> bytes:
        file = self._files.get(entry.shard)
        if file is None:
            if len(self._files) >= _MAX_OPEN:
                self._files.pop(next(iter(tuple(self._files))), None)
            file = _OpenFile(os.open(self._shards[entry.shard], os.O_RDONLY))
            self._files[entry.shard] = file
        # pread has no position: processes made by fork can share the open file.
        return os.pread(file.descriptor, entry.size, entry.offset)


def _scan(number: int, shard: Path) -> list[tuple[_Entry, _Entry]]:
    """Return (picture, label) of each key of a shard."""
    pictures: dict[str, _Entry] = {}
    labels: dict[str, _Entry] = {}
    length = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue  # links, devices and folders hold no picture
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key, suffix = f"{folder}/{stem}", suffix.lower()
                entry = _Entry(number, member.name, member.offset_data, member.size)
                if member.offset_data + member.size > length:
                    raise DataError(
                        f"{shard}: {member.name!r} declares {member.size} bytes, beyond the end"
                        f" of the file at {length}",
                        fix="get the shard again: it is cut off or forged",
                    )
                if suffix in SUFFIXES:
                    _add(pictures, key, entry, shard)
                elif suffix in ("cls", "json") and not (suffix == "json" and key in labels):
                    labels[key] = entry
    except tarfile.TarError as error:
        raise DataError(
            f"{shard} is not a readable uncompressed tar: {error}",
            fix="decompress it (gunzip, zstd -d), or get it again",
        ) from error
    unlabelled = [entry.name for key, entry in pictures.items() if key not in labels]
    if unlabelled:
        raise DataError(
            f"{shard}: {len(unlabelled)} of {len(pictures)} pictures have no .cls or .json beside"
            f" them, such as {unlabelled[0]}",
            fix="write a label for each picture",
        )
    return [(entry, labels[key]) for key, entry in pictures.items()]


def _add(pictures: dict[str, _Entry], key: str, entry: _Entry, shard: Path) -> None:
    if key in pictures:
        raise DataError(
            f"{shard}: two pictures have one key: {pictures[key].name} and {entry.name}",
            fix="give every sample a key of its own",
        )
    pictures[key] = entry


def _parse_label(content: bytes | None, entry: _Entry, shard: Path, label_key: str) -> str | int:
    name = entry.name
    if content is None:
        raise DataError(
            f"{shard}: the label {name} has {entry.size} bytes, more than {_MAX_LABEL_BYTES}",
            fix="check how it was written",
        )
    try:
        text = content.decode("utf-8").strip()
        if not name.lower().endswith(".json"):
            return text
        label = json.loads(text)[label_key]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{shard}: the label {name} cannot be read: {error!r}",
            fix=f'write text into .cls, or {{"{label_key}": ...}} into .json',
        ) from error
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise DataError(
            f"{shard}: {label_key}={label!r} in {name} is neither a name nor a number",
            fix="set label_column to the key of the class",
        )
    return label
