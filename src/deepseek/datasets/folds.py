"""Which sample is in which fold: as many of each class in all of them, groups never parted.

Protocol: Kohavi 1995, "A study of cross-validation and bootstrap"; stratified.

Shapes: N samples.
"""

import numpy as np

from deepseek.datasets.randomness import permutation
from deepseek.errors import ConfigError


def stratified_folds(
    classes: np.ndarray, num_folds: int, seed: int = 0, groups: np.ndarray | None = None
) -> np.ndarray:
    """Return the fold of each sample, int64 (N,), 0..num_folds - 1; a function of the arguments.

    Args:
        classes: number of the class of each sample, (N,).
        num_folds: at least 2.
        seed: of the order within classes.
        groups: number of the group of each sample, (N,); a group stays in one fold.

    Raises:
        ConfigError: there are fewer samples than folds, or fewer than 2 folds.
    """
    classes = np.asarray(classes)
    if not 2 <= num_folds <= len(classes):
        raise ConfigError(
            f"folds={num_folds} of {len(classes)} samples", fix="give 2 to the number of samples"
        )
    if groups is not None:
        return _grouped(classes, num_folds, seed, np.asarray(groups))
    order = np.concatenate(
        [
            members[permutation(len(members), seed, int(number))]
            for number in np.unique(classes)
            for members in [np.flatnonzero(classes == number)]
        ]
    )
    folds = np.empty(len(classes), np.int64)
    folds[order] = np.arange(len(order)) % num_folds  # dealt on over classes: folds of one size
    return folds


def _grouped(classes: np.ndarray, num_folds: int, seed: int, groups: np.ndarray) -> np.ndarray:
    """Give each group, the largest first, to the fold that has least of its classes."""
    _, known = np.unique(classes, return_inverse=True)
    names, member_of = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), known.max() + 1), np.int64)
    np.add.at(counts, (member_of, known), 1)
    shuffled = permutation(len(names), seed)
    order = shuffled[np.argsort(-counts[shuffled].sum(1), kind="stable")]
    held = np.zeros((num_folds, counts.shape[1]), np.int64)
    fold_of = np.empty(len(names), np.int64)
    share = counts.sum(0).clip(min=1)
    for group in order.tolist():
        filled = (held * (counts[group] / share)).sum(1)
        fold = int(np.lexsort((held.sum(1), filled))[0])
        fold_of[group] = fold
        held[fold] += counts[group]
    return fold_of[member_of]
