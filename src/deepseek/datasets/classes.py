"""Whether two data sets mean the same by class 0, 1, ..."""

from collections.abc import Sequence
from typing import Protocol

from deepseek.datasets.spec import DataSpec
from deepseek.errors import DataError


class HasClasses(Protocol):
    """A data set."""

    spec: DataSpec

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of class 0, 1, ..."""
        ...


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
    if train.class_names == val.class_names:
        return
    only_train = [name for name in train.class_names if name not in val.class_names]
    only_val = [name for name in val.class_names if name not in train.class_names]
    if only_train or only_val:
        sides = (("training", only_train), ("validation", only_val))
        found = "; ".join(f"only in {side}: {_some(names)}" for side, names in sides if names)
        raise DataError(
            f"training and validation data differ in their classes: {found}",
            fix="add the missing classes, or give both data sets the same class_names=[...]",
        )
    raise DataError(
        f"training and validation data order their classes differently:"
        f" {_some(train.class_names)} and {_some(val.class_names)}",
        fix="give both data sets the same class_names=[...]",
    )


def _some(names: Sequence[str], count: int = 10) -> str:
    return ", ".join(names[:count]) + (f", ... ({len(names)})" if len(names) > count else "")
