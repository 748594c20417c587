"""Whether two data sets mean the same by class 0, 1, ..."""

from collections.abc import Sequence
from typing import Protocol

from deepseek.datasets.loader import DataLoader, LabelledDataset
from deepseek.datasets.spec import DataSpec
from deepseek.errors import DataError


class HasClasses(Protocol):
    """A data set."""

    spec: DataSpec

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of class 0, 1, ..."""
        ...


def check_same_data(train: DataLoader, val: DataLoader) -> None:
    """Check that what training and validation load number their classes alike, of every task.

    Where data sets are not ours, one side may lack the last classes, or have numbers for names.

    Raises:
        DataError: if not.
    """
    if isinstance(train.dataset, LabelledDataset) and isinstance(val.dataset, LabelledDataset):
        check_same_classes(train.dataset, val.dataset)
        return
    _check_numbering(train.spec.class_names, val.spec.class_names, "")
    for name in train.spec.tasks.keys() & val.spec.tasks.keys():
        ours, theirs = train.spec.tasks[name], val.spec.tasks[name]
        _check_numbering(ours.class_names, theirs.class_names, f" of task {name!r}")


def check_same_classes(train: HasClasses, val: HasClasses) -> None:
    """Check that training and validation data number the same classes in the same way.

    Raises:
        DataError: if not; names the classes that only one side has.
    """
    if train.spec.features != val.spec.features:
        raise DataError(
            "training and validation data have different feature specs: ids would not agree",
            fix="give both the fitted spec of the training data: features=train_data.features",
        )
    if train.class_names != val.class_names:
        raise _other_classes(train.class_names, val.class_names)


def _check_numbering(train: Sequence[str], val: Sequence[str], whose: str) -> None:
    if all(name == other for name, other in zip(train, val, strict=False)):
        return
    for names, others in ((train, val), (val, train)):
        counts = all(name == str(number) for number, name in enumerate(names))
        if counts and not any(other.isdecimal() for other in others):
            return  # of a data set without names
    raise _other_classes(train, val, whose)


def _other_classes(train: Sequence[str], val: Sequence[str], whose: str = "") -> DataError:
    only_train = [name for name in train if name not in val]
    only_val = [name for name in val if name not in train]
    if only_train or only_val:
        sides = (("training", only_train), ("validation", only_val))
        found = "; ".join(f"only in {side}: {_some(names)}" for side, names in sides if names)
        return DataError(
            f"training and validation data{whose} differ in their classes: {found}",
            fix="add the missing classes, or give both data sets the same class_names=[...]",
        )
    return DataError(
        f"training and validation data{whose} order their classes differently:"
        f" {_some(train)} and {_some(val)}",
        fix="give both data sets the same class_names=[...]",
    )


def _some(names: Sequence[str], count: int = 10) -> str:
    return ", ".join(names[:count]) + (f", ... ({len(names)})" if len(names) > count else "")
