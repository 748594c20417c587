"""Pictures in one folder a class: `daisy/1.jpg`, `rose/nested/2.png`."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from typing_extensions import override

from deepseek.datasets.picture import SUFFIXES
from deepseek.datasets.source import ImageSource
from deepseek.errors import DataError

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


class FolderSource(ImageSource):
    """A folder whose sub-folders are classes, in alphabetical order; deeper folders belong to them.

    Hidden files and folders, and files that are not pictures by their suffix, are passed over.
    """

    def __init__(self, path: Path, class_names: Sequence[str] | None = None) -> None:
        folders = sorted(entry.name for entry in os.scandir(path) if _is_class_folder(entry))
        loose = [entry.name for entry in os.scandir(path) if is_picture_name(entry.name)]
        files = {name: _find_pictures(path / name) for name in folders}
        names = tuple(folders if class_names is None else class_names)
        _check_folders(path, files, loose, class_names)
        self._files: list[str] = []
        targets: list[int] = []
        for number, name in enumerate(names):
            self._files += files.get(name, [])
            targets += [number] * len(files.get(name, []))
        super().__init__("class folders", str(path), np.array(targets, np.int64), names)

    @override
    def read(self, index: int) -> bytes:
        with open(self._files[index], "rb") as file:
            return file.read()

    @override
    def describe(self, index: int) -> str:
        return self._files[index]


def is_picture_name(name: str) -> bool:
    """Tell whether a file name ends as a picture's does, and is not hidden."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in SUFFIXES


def _is_class_folder(entry: os.DirEntry) -> bool:
    return entry.is_dir() and not entry.name.startswith((".", "__"))


def _find_pictures(folder: Path) -> list[str]:
    found = []
    # Links to folders are followed, as people build subsets of them; a cycle is not entered twice.
    seen: set[str] = set()
    for base, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(base, name) for name in sorted(names) if is_picture_name(name)]
    return found


def _check_folders(
    path: Path, files: dict[str, list[str]], loose: list[str], class_names: Sequence[str] | None
) -> None:
    if len(files) > 0 and all(name.lower() in _SPLITS for name in files):
        raise DataError(
            f"{path} holds splits, not classes: {', '.join(files)}",
            fix=f"give one of them as path, such as {path / next(iter(files))}",
        )
    if loose and files:
        raise DataError(
            f"{path} holds {len(loose)} pictures beside its class folders, such as {loose[0]}",
            fix="move each into the folder of its class",
        )
    if not any(files.values()):
        found = f"{len(loose)} pictures without a class" if loose else "no pictures"
        raise DataError(
            f"{path} holds {found}: a folder of pictures has one sub-folder for each class",
            fix=f"make folders such as {path}/daisy/1.jpg, or give an index file,"
            " Parquet files, tar shards or a saved data set",
        )
    empty = [name for name, found in files.items() if not found]
    if class_names is None and empty:
        raise DataError(
            f"{path}: no pictures in the class folders {', '.join(empty)}",
            fix="remove the empty folders, or name the classes by class_names=[...]",
        )
    unknown = [name for name in files if name not in class_names] if class_names else []
    if unknown:
        raise DataError(
            f"{path}: the folders {', '.join(unknown)} are not in class_names={class_names!r}",
            fix="add them to class_names, or move them elsewhere",
        )
