"""Predictions over the validation data, checked before anything is computed from them.

Shapes: N samples, C classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file


@dataclass(frozen=True)
class Predictions:
    """What a classifier said about each sample.

    Args:
        targets: int64 (N,), in 0..C-1.
        predicted: int64 (N,), the most probable class.
        confidence: float64 (N,), its probability.
        num_classes: C.
        num_unlabelled: samples left out because their target is no class (`ignore_index`).
    """

    targets: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    num_classes: int
    num_unlabelled: int = 0

    def __len__(self) -> int:
        return len(self.targets)


def read_predictions(path: Path) -> tuple[Predictions | None, str]:
    """Return the predictions, or None and the reason in plain text."""
    if not path.is_file():
        return (
            None,
            f"this run has no evaluation/{path.name} (no validation data, or not yet evaluated).",
        )
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError):
        return None, f"evaluation/{path.name} is damaged or holds a type that NumPy lacks."
    if "targets" not in tensors or "probs" not in tensors:
        return None, f"evaluation/{path.name} has no class probabilities: not a classifier."
    targets, probs = tensors["targets"], tensors["probs"]
    is_classifier = targets.ndim == 1 and probs.ndim == 2 and probs.shape[1] >= 2
    if not is_classifier or len(targets) != len(probs) or targets.dtype.kind not in "iu":
        return None, (
            f"targets {targets.dtype} {targets.shape} and probs {probs.shape}"
            " are not those of a classifier with one label per sample."
        )
    return _check_values(targets.astype(np.int64), probs)


def _check_values(targets: np.ndarray, probs: np.ndarray) -> tuple[Predictions | None, str]:
    num_classes = probs.shape[1]
    keep = (targets >= 0) & (targets < num_classes)
    num_unlabelled = int((~keep).sum())
    if num_unlabelled:
        targets, probs = targets[keep], probs[keep]
    if not len(targets):
        return None, "no validation sample has a label."
    predicted = probs.argmax(axis=1)
    confidence = probs[np.arange(len(probs)), predicted].astype(np.float64)
    # argmax returns the first NaN of a row, so that looking at the greatest value alone finds it.
    if not ((confidence >= 0) & (confidence <= 1 + 1e-3)).all():
        return None, "the predicted probabilities are not all between 0 and 1: the model diverged."
    confidence = np.minimum(confidence, 1.0)
    return Predictions(targets, predicted, confidence, num_classes, num_unlabelled), ""
