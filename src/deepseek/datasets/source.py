"""Where pictures come from: a list of encoded pictures with a label each."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from deepseek.datasets.text_numbers import read_whole_number
from deepseek.errors import DataError
from deepseek.registry import nearest


class ImageSource(ABC):
    """Random access to pictures as they are stored.

    Args:
        layout: what the path was taken for, in words, for messages.
        path: where it was found.
        targets: class number of each picture, int64.
        class_names: name of class 0, 1, ...
    """

    def __init__(
        self, layout: str, path: str, targets: np.ndarray, class_names: Sequence[str]
    ) -> None:
        self.layout = layout
        self.path = path
        self.targets = np.ascontiguousarray(targets, dtype=np.int64)
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def read(self, index: int) -> bytes | np.ndarray:
        """Return the encoded picture, or its pixels as uint8 (H, W) or (H, W, 3)."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """Return path or place of a picture, for messages."""


def number_labels(
    labels: Sequence[str | int], class_names: Sequence[str] | None, path: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn labels into class numbers.

    With `class_names`, a label is one of these names (whole numbers by value), or else, where no
    name is a number, a number that counts in them. Without, the names are the labels in order: by
    value where all are whole numbers, by alphabet otherwise.

    Args:
        labels: one a sample, text or number.
        class_names: the classes, in the order of their numbers.
        path: where the labels come from, for messages.

    Returns:
        Class numbers (int64), and the class names.

    Raises:
        DataError: if a label is empty, or fits no class.
    """
    try:
        distinct = sorted(set(labels), key=str)
    except TypeError:  # lists are in no set
        distinct = [label for label in labels if not isinstance(label, str | int)]
    for label in distinct:
        if not isinstance(label, str | int):
            raise DataError(
                f"{path}: the label {label!r} is a {type(label).__name__}, neither a name nor a"
                " whole number",
                fix="choose the column that holds the class by label_column=...",
            )
        if isinstance(label, str) and not label.strip():
            raise DataError(
                f"{path}: the label of entry {list(labels).index(label)} is empty",
                fix="give every sample a label, or leave the sample out",
            )
    if class_names is None:
        if all(_as_number(label) is not None for label in distinct):
            distinct.sort(key=lambda label: int(label))
        names = tuple(dict.fromkeys(_name_of(label) for label in distinct))
        number_of = {name: i for i, name in enumerate(names)}
        by_label = {label: number_of[_name_of(label)] for label in distinct}
    else:
        names = tuple(class_names)
        by_label = _find_classes(distinct, names, path)
    numbers = np.fromiter((by_label[label] for label in labels), np.int64, len(labels))
    return numbers, names


def name_labels(
    labels: Sequence, own: Sequence[str], class_names: Sequence[str], path: str
) -> list:
    """Return labels with names in place of numbers, which count in the names of their own file.

    Where `class_names` are other names of these classes, the numbers count in them.

    Args:
        labels: of a ClassLabel column: numbers; anything else stays.
        own: names that the file has.
        class_names: the classes, in the order of their numbers.
        path: where the labels come from, for messages.

    Raises:
        DataError: a number is beyond the names, or its name is no class.
    """
    names = tuple(class_names if _are_renamed(own, class_names) else own)
    known = set(class_names)
    found = []
    for label in labels:
        if isinstance(label, int):
            if not 0 <= label < len(names):
                raise _no_class(label, names, path)
            label = names[label]
            if label not in known:
                raise _no_class(label, tuple(class_names), path)
        found.append(label)
    return found


def _are_renamed(own: Sequence[str], class_names: Sequence[str]) -> bool:
    place_of = {name: number for number, name in enumerate(class_names)}
    places = [(number, place_of[name]) for number, name in enumerate(own) if name in place_of]
    return len(places) < len(own) and all(number == place for number, place in places)


def _as_number(label: str | int) -> int | None:
    try:
        return read_whole_number(label)
    except ValueError:
        return None


def _name_of(label: str | int) -> str:
    number = _as_number(label)
    return str(label).strip() if number is None else str(number)


def _find_classes(
    labels: Sequence[str | int], names: tuple[str, ...], path: str
) -> dict[str | int, int]:
    number_of = {_name_of(name): number for number, name in enumerate(names)}
    number_of |= {name: number for number, name in enumerate(names)}
    # a number that counted in them could be another class that is called so
    may_count = all(_as_number(name) is None for name in names)
    found = {}
    for label in labels:
        texts = (str(label), str(label).strip(), _name_of(label))
        number = next((number_of[text] for text in texts if text in number_of), None)
        if number is None and may_count:
            number = _as_number(label)
        if number is None or not 0 <= number < len(names):
            raise _no_class(label, names, path)
        found[label] = number
    return found


def _no_class(label: str | int, names: tuple[str, ...], path: str) -> DataError:
    close = nearest(str(label), names)
    return DataError(
        f"{path}: label {label!r} is none of the {len(names)} classes {_some(names)}",
        fix=f"did you mean {close[0]!r}? Correct the label, or class_names"
        if close
        else "correct the label, or add it to class_names",
    )


def _some(names: Sequence[str], count: int = 10) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
