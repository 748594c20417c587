"""The built-in data set `digits`: 1,797 handwritten digits of 8 x 8 pixels, ten classes.

The test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, 1998, UCI
Machine Learning Repository (https://doi.org/10.24432/C50P49, CC BY 4.0), as scikit-learn ships it;
its 17 gray levels are scaled to 0..255.
"""

from collections.abc import Sequence
from importlib.resources import files

import numpy as np
from typing_extensions import override

from deepseek.datasets.source import ImageSource, number_labels


class DigitsSource(ImageSource):
    """The digits, read from this package."""

    def __init__(self, class_names: Sequence[str] | None = None) -> None:
        with (files("deepseek.datasets") / "digits.npz").open("rb") as file:
            content = np.load(file, allow_pickle=False)
            self._images = content["images"]
            labels = content["labels"].tolist()
        names = [str(digit) for digit in range(10)] if class_names is None else class_names
        targets, names = number_labels(labels, names, "digits")
        super().__init__("built-in digits", "digits", targets, names)

    @override
    def read(self, index: int) -> np.ndarray:
        return self._images[index]

    @override
    def describe(self, index: int) -> str:
        return f"digits[{index}]"
