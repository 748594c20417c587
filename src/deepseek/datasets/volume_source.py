"""Where volumes and their labels are: two folders side by side, or an index file."""

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek.datasets.text_numbers import read_whole_number
from deepseek.datasets.volume_file import format_of, stem_of
from deepseek.errors import DataError
from deepseek.registry import did_you_mean

FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))
MAX_INDEX_BYTES = 256 * 2**20
WHITE = 255


@dataclass(frozen=True)
class VolumePair:
    """A volume and the labels of its voxels, unread; and whose they are, where a list says it."""

    image: Path
    labels: Path
    patient: str | None = None


@dataclass(frozen=True)
class VolumeSource:
    """Volumes with labels, in the order of their names, or of the index.

    Attributes:
        path: where they were found.
        layout: what the path was taken for, in words.
        pairs: one a volume.
        class_names: if the source says them, else `None`.
    """

    path: str
    layout: str
    pairs: tuple[VolumePair, ...]
    class_names: tuple[str, ...] | None


def find_volumes(path: str | os.PathLike) -> VolumeSource:
    """Return the volumes at a path, none of them read.

    Args:
        path: a folder with `images/` and `labels/` (or `imagesTr/`, `labelsTr/`, as the Medical
            Segmentation Decathlon has them, whose `dataset.json` names the classes), files of one
            name in both; `subset0/`, ... and `seg*/`, as LUNA16 is unpacked; or a CSV file with the
            columns `image` and `label`, relative to it, and `patient` if it has one.

    Raises:
        DataError: there are none, or a volume lacks its labels.
    """
    root = Path(path)
    if root.is_file() and root.suffix.lower() == ".csv":
        return VolumeSource(str(root), "index file", _read_index(root), None)
    for images, labels in FOLDERS:
        if (root / images).is_dir() and (root / labels).is_dir():
            pairs = _pair_folders([root / images], [root / labels])
            return VolumeSource(str(root), f"{images} and {labels}", pairs, _names_of(root))
    subsets, masks = (
        sorted(path for path in root.glob(name) if path.is_dir()) for name in ("subset*", "seg*")
    )
    if subsets and masks:
        return VolumeSource(str(root), "subsets", _pair_folders(subsets, masks), _names_of(root))
    if not root.exists():
        raise DataError(f"{root} does not exist", fix="correct the path")
    raise DataError(
        f"{root} is neither a folder with images/ and labels/ nor a CSV file",
        fix="put volumes into images/, labels of the same names into labels/, or list them in a CSV"
        " file with the columns image and label",
    )


def _pair_folders(images: Sequence[Path], labels: Sequence[Path]) -> tuple[VolumePair, ...]:
    found = {"volumes": _by_stem(images), "labels": _by_stem(labels)}
    for has, lacks in (("volumes", "labels"), ("labels", "volumes")):
        alone = sorted(found[has].keys() - found[lacks].keys())
        if alone:
            raise DataError(
                f"{len(alone)} of {len(found[has])} {has} in {images[0].parent} have no {lacks}:"
                f" {', '.join(alone[:3])}",
                fix="give both the same name, or move these elsewhere",
            )
    if not found["volumes"]:
        raise DataError(f"{images[0]} holds no volumes", fix="correct the path")
    return tuple(
        VolumePair(path, found["labels"][stem]) for stem, path in sorted(found["volumes"].items())
    )


def _by_stem(folders: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in [path for folder in folders for path in sorted(folder.iterdir())]:
        if path.name.startswith(".") or format_of(path) is None:
            continue
        stem = stem_of(path)
        if stem in found:
            raise DataError(
                f"{path.parent} has {stem} twice: {found[stem].name} and {path.name}",
                fix="leave one of them",
            )
        found[stem] = path
    return found


def _read_index(path: Path) -> tuple[VolumePair, ...]:
    check_index_size(path)
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or [])
            for column in ("image", "label"):
                if column not in columns:
                    raise DataError(
                        f"{path} has no column {column!r}, but {', '.join(columns[:5])}",
                        fix=did_you_mean(column, columns) if columns else "add a header",
                    )
            listed = [(row["image"], row["label"], row.get("patient")) for row in rows]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} is no CSV file: {error}", fix="save it as UTF-8") from error
    if not listed:
        raise DataError(f"{path} lists no volumes", fix="add a line for each")
    pairs = []
    for line, (*names, patient) in enumerate(listed, start=2):
        if not all(names):
            raise DataError(f"{path}, line {line}: a path is empty", fix="give both paths")
        if "patient" in columns and not patient:
            raise DataError(
                f"{path}, line {line}: patient is empty", fix="name each, or leave the column out"
            )
        image, labels = (_inside(path, name, line) for name in names)
        pairs.append(VolumePair(image, labels, patient))
    return tuple(pairs)


def check_index_size(path: Path) -> None:
    """Refuse what is too large for a list of volumes or findings, or is not there.

    Raises:
        DataError: it is.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file", fix="correct the path")
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise DataError(
            f"{path} is larger than {MAX_INDEX_BYTES >> 20} MiB: no list", fix="correct the path"
        )


def _inside(index: Path, name: str, line: int) -> Path:
    """Return a listed file; a relative path must not lead out of the folder of its index."""
    base = index.parent.absolute()
    found = Path(os.path.normpath(base / name))
    if not os.path.isabs(name) and base not in found.parents:
        raise DataError(
            f"{index}, line {line}: {name} leads out of the folder of the index",
            fix="give an absolute path",
        )
    if not found.exists():
        raise DataError(f"{index}, line {line}: {name} does not exist", fix="correct the path")
    return found


def _names_of(root: Path) -> tuple[str, ...] | None:
    """Return the names in a `dataset.json`: number -> name (MSD), or name -> number (nnU-Net)."""
    described = root / "dataset.json"
    if not described.is_file():
        return None
    try:
        labels = json.loads(described.read_text(encoding="utf-8"))["labels"]
        by_number = {
            int(key) if str(key).isdecimal() else read_whole_number(value): str(value)
            if str(key).isdecimal()
            else str(key)
            for key, value in labels.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{described} does not say its labels as number -> name", fix="mend or remove it"
        ) from error
    if sorted(by_number) != list(range(len(by_number))):
        raise DataError(
            f"{described} numbers its labels {sorted(by_number)[:8]}, not 0, 1, 2, ...",
            fix="number them without gaps",
        )
    return tuple(by_number[number] for number in range(len(by_number)))


def name_classes(
    given: Sequence[str] | None,
    found: Sequence[str] | None,
    labels: Iterable[int],
    where: str,
    *,
    are_all: bool = True,
) -> tuple[str, ...]:
    """Return the names of the classes: those given, those of the source, or numbers.

    Args:
        given: by the user.
        found: in the source.
        labels: that occur.
        where: what the source is called in messages.
        are_all: whether no other label occurs; else numbers may have gaps.

    Raises:
        DataError: a label is beyond the names, there is but one class, or numbers without names
            have gaps, as those of a picture's mask: 0 and 255.
    """
    names = given or found
    there = {0, *labels}
    highest = max(there)
    if there == {0, WHITE} and len(names or ()) <= WHITE:
        raise DataError(
            f"{where}: labels are 0 and {WHITE}, the black and white of a picture, not numbers of"
            " classes",
            fix=f"write 1 where it is {WHITE}, such as (labels > 0).astype('uint8')",
        )
    if names is None:
        gaps = sorted(set(range(highest)) - there)
        if gaps and are_all:
            raise DataError(
                f"{where}: labels go up to {highest}, and {len(gaps)} below it never occur, such as"
                f" {', '.join(map(str, gaps[:3]))}",
                fix="number the classes 0, 1, 2, ... without gaps, or name all by class_names",
            )
        names = ["background", *(str(number) for number in range(1, highest + 1))]
    if highest >= len(names):
        raise DataError(
            f"{where} holds the label {highest}, beyond the {len(names)} class_names",
            fix="name every class, the background first",
        )
    if len(names) < 2:
        raise DataError(
            f"{where}: no voxel has another label than 0: there is nothing to tell apart",
            fix="give labels with a class in them, or name the classes by class_names",
        )
    return tuple(names)
