"""Whether the probabilities of voxels come true, class by class.

Paper: Guo et al. 2017, arXiv 1706.04599, equations 2 to 5, of each class against all others rather
than of the class that is predicted: most voxels are background, and would hide the rest.

Shapes: K classes, D H W voxels.
"""

from collections.abc import Sequence

import numpy as np

from deepseek.deploy.report.calibration import Calibration
from deepseek.deploy.report.markup import Section, card, table, text
from deepseek.deploy.report.quantity import percent
from deepseek.deploy.report.reliability import reliability_diagram
from deepseek.errors import ConfigError, DataError
from deepseek.trainer.task import IGNORE_INDEX

NUM_BINS = 15
_SLICE_VOXELS = 2**22
"""Voxels that are counted at a time."""
LEAST = 0.01
"""Probability from which a voxel counts where nothing is said: most of a scan is surely none."""


class VoxelCalibration:
    """Counts the voxels of any number of volumes in bins of their probabilities.

    Args:
        num_classes: K.
        num_bins: of equal width.
        least: probability from which a voxel counts; above 0 what is surely of another class, most
            of a volume, is left out.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(self, num_classes: int, num_bins: int = NUM_BINS, least: float = 0.0) -> None:
        if num_classes < 1 or num_bins < 1 or not 0 <= least < 1:
            raise ConfigError(
                f"num_classes={num_classes} or num_bins={num_bins} is below 1, or least={least} not"
                " in 0..1",
                fix="correct the argument",
            )
        self.num_classes, self.num_bins, self.least = num_classes, num_bins, least
        # of each class and bin: voxels, sum of probabilities, voxels that are of the class
        self._sums = np.zeros((3, num_classes, num_bins))

    def update(self, probs: np.ndarray, labels: np.ndarray) -> None:
        """Add a volume.

        Args:
            probs: (K, D, H, W), 0..1.
            labels: (D, H, W); -100 does not count.

        Raises:
            DataError: shapes do not fit, or a probability is none.
        """
        if probs.shape != (self.num_classes, *labels.shape):
            raise DataError(
                f"probabilities {probs.shape} and labels {labels.shape} of {self.num_classes}"
                " classes do not fit",
                fix="give (K, D, H, W) and (D, H, W)",
            )
        rows, known = probs.reshape(self.num_classes, -1), labels.reshape(-1)
        for start in range(0, len(known), _SLICE_VOXELS):
            self._add(rows[:, start : start + _SLICE_VOXELS], known[start : start + _SLICE_VOXELS])

    def _add(self, probs: np.ndarray, labels: np.ndarray) -> None:
        if not (probs.min() >= -1e-6 and probs.max() <= 1 + 1e-6):
            raise DataError("a probability is not in 0..1", fix="give softmax or sigmoid outputs")
        edges = np.linspace(0.0, 1.0, self.num_bins + 1)[1:-1]
        for number, row in enumerate(probs):
            is_counted = (labels != IGNORE_INDEX) & (row >= self.least)
            said, true = row[is_counted].astype(np.float64), labels[is_counted] == number
            bins = np.searchsorted(edges, said, side="left")
            for sums, weights in zip(self._sums, (None, said, true), strict=True):
                sums[number] += np.bincount(bins, weights, minlength=self.num_bins)

    @property
    def sums(self) -> list[float]:
        """All counts, which processes may add up."""
        return self._sums.ravel().tolist()

    def take_sums(self, sums: Sequence[float]) -> None:
        """Replace all counts."""
        self._sums = np.array(sums).reshape(self._sums.shape)

    def errors(self, first_class: int = 1) -> tuple[float, float]:
        """Return the expected error, the mean over classes from the first on, and the largest.

        NaN where no voxel of these classes counts.
        """
        found = [self.of_class(number) for number in range(first_class, self.num_classes)]
        there = [each for each in found if each.count.any()]
        if not there:
            return float("nan"), float("nan")
        return float(np.mean([each.ece for each in there])), max(each.mce for each in there)

    def of_class(self, number: int) -> Calibration:
        """Return reliability and errors of a class; NaN as errors where no voxel counts."""
        count, said, true = self._sums[:, number]
        is_there = count > 0
        weight = np.where(is_there, count, 1)
        gap = np.abs(true - said) / weight
        nothing = float("nan")
        return Calibration(
            edges=np.linspace(0.0, 1.0, self.num_bins + 1),
            count=count.astype(np.int64),
            confidence=np.where(is_there, said / weight, np.nan),
            accuracy=np.where(is_there, true / weight, np.nan),
            ece=float((gap * count).sum() / count.sum()) if is_there.any() else nothing,
            mce=float(gap[is_there].max()) if is_there.any() else nothing,
        )


def calibration_section(found: VoxelCalibration, class_names: Sequence[str]) -> Section:
    """Return the section of a page: errors and a diagram of each class but the first."""
    lines, cards = [], ""
    for number, name in list(enumerate(class_names))[1:]:
        result = found.of_class(number)
        voxels = int(result.count.sum())
        if not voxels:
            continue
        lines.append([text(name), f"{voxels:,}", percent(result.ece), percent(result.mce)])
        cards += card(text(name), reliability_diagram(result))
    if not lines:
        return Section("calibration", "Calibration of voxels", "")
    head = ("Class", "Voxels", "Expected error", "Largest error")
    note = (
        "Is a voxel that is given a class with probability p of it in a share p of the cases?"
        f" Voxels with a probability of {percent(found.least)} and more."
    )
    body = card(
        "Each class",
        table(head, lines, caption="Calibration of each class", numeric=(1, 2, 3))
        + f'<p class="note">{note}</p>',
    )
    body += f'<div class="split">{cards}</div>'
    return Section("calibration", "Calibration of voxels", body)
