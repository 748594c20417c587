"""What radiologists would say of a nodule: malignancy, texture and their other scores.

All scores are linear in one set of features (form, density and the U-Net's deepest features), each
with its own weights, by ridge regression: a hundred nodules overfit anything larger. A score that
a nodule lacks does not count. Weights are the mean over a wide range of penalties: on 93 nodules
in 5 folds that gives an AUC of 0.834, and one penalty, chosen by patients that are left out, 0.814.

Paper: Hoerl and Kennard 1970, doi 10.1080/00401706.1970.10488634 (ridge regression).

Shapes: N nodules, F features, S scores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from deepseek.errors import ConfigError, DataError
from deepseek.medical.nodule_cubes import NoduleCubes
from deepseek.medical.nodule_features import nodule_features
from deepseek.models.unet3d import UNet3D
from deepseek.trainer.bootstrap import Interval, bootstrap_interval

PENALTIES = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Times the number of features: of the fits whose mean is taken where no penalty is given."""


@dataclass(frozen=True, eq=False)
class ScoreModel:
    """Scores as sums of weighted features.

    Attributes:
        mean: of each feature, (F,).
        scale: of each feature, (F,).
        weights: (F, S).
        offsets: (S,).
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the scores (N, S) of features (N, F)."""
        return (features - self.mean) / self.scale @ self.weights + self.offsets


def fit_scores(
    features: np.ndarray, scores: np.ndarray, penalty: float | None = None
) -> ScoreModel:
    """Return a model of scores.

    Args:
        features: (N, F), finite.
        scores: (N, S), NaN where one is missing.
        penalty: on the squares of the weights of scaled features; by default weights are the
            mean over `PENALTIES`.

    Raises:
        DataError: shapes do not fit, a feature is not finite, or a score is known of fewer than two
            nodules.
    """
    features, scores = np.asarray(features, np.float64), np.asarray(scores, np.float64)
    if features.ndim != 2 or scores.ndim != 2 or len(features) != len(scores):
        raise DataError(
            f"features {features.shape} and scores {scores.shape} do not fit",
            fix="give both a row for each nodule",
        )
    if not np.isfinite(features).all():
        raise DataError("a feature is not finite", fix="leave the nodule out")
    counts = (~np.isnan(scores)).sum(0)
    if counts.min(initial=2) < 2:
        raise DataError(
            f"score {int(counts.argmin())} is known of {counts.min()} nodules",
            fix="leave the score out, or give more nodules",
        )
    mean, scale = features.mean(0), features.std(0)
    # what differs by the rounding of float32 alone is constant
    scale = np.where(scale > 1e-6, scale, 1.0)
    scaled = (features - mean) / scale
    shares = features.shape[1] * np.array(PENALTIES)
    penalties = shares.tolist() if penalty is None else [penalty]
    fitted = [
        _ridge(scaled[is_known], score[is_known], penalties)
        for score, is_known in zip(scores.T, ~np.isnan(scores.T), strict=True)
    ]
    weights, offsets = zip(*fitted, strict=True)
    return ScoreModel(mean, scale, np.stack(weights, 1), np.array(offsets))


def _ridge(
    scaled: np.ndarray, score: np.ndarray, penalties: Sequence[float]
) -> tuple[np.ndarray, float]:
    mean, offset = scaled.mean(0), float(score.mean())
    centred = scaled - mean
    gram, both = centred.T @ centred, centred.T @ (score - offset)
    fits = [np.linalg.solve(gram + each * np.eye(len(gram)), both) for each in penalties]
    weights = np.mean(fits, 0)
    return weights, offset - float(mean @ weights)


def form_features(cubes: NoduleCubes) -> np.ndarray:
    """Return `nodule_features` of every cube, (N, F); needs scipy."""
    return np.array([
        list(nodule_features(voxels, mask, cubes.spacing_mm).values())
        for voxels, mask in zip(cubes.voxels, cubes.masks, strict=True)
    ])  # fmt: skip


@torch.inference_mode()
def deep_features(model: UNet3D, cubes: NoduleCubes, patch: Sequence[int]) -> np.ndarray:
    """Return the deepest features of a U-Net, averaged over each nodule, (N, F).

    Args:
        model: in evaluation mode, of one channel.
        cubes: what to describe.
        patch: size of the crop around each nodule, in voxels.

    Raises:
        ConfigError: the patch is larger than the cubes.
    """
    device, found = next(model.parameters()).device, []
    if any(extent > size for extent, size in zip(patch, cubes.masks.shape[1:], strict=True)):
        raise ConfigError(
            f"patch={list(patch)} of cubes of {cubes.masks.shape[1:]}", fix="give a smaller patch"
        )
    for voxels, mask in zip(cubes.voxels, cubes.masks, strict=True):
        box = []
        for at, extent, size in zip(np.argwhere(mask).mean(0), patch, mask.shape, strict=True):
            start = min(max(round(float(at)) - extent // 2, 0), size - extent)
            box.append(slice(start, start + extent))
        crop = torch.from_numpy(voxels[tuple(box)].copy()).to(device)[None, None]
        inside = torch.from_numpy(mask[tuple(box)].astype(np.float32)).to(device)[None, None]
        deepest = model.levels(crop)[0].float()
        d, h, w = deepest.shape[2:]
        share = F.adaptive_avg_pool3d(inside, (d, h, w))
        mean = (deepest * share).sum((2, 3, 4)) / share.sum().clamp(min=1e-6)
        found.append(mean[0].cpu().double().numpy())
    return np.array(found)


def malignancy_labels(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return 1 for a malignancy of 4 or 5, 0 for 1 or 2, NaN for 3 or unknown, (N,)."""
    given = scores["malignancy"]
    return np.where(given > 3, 1.0, np.where(given < 3, 0.0, np.nan))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve; NaN where a class is missing.

    Args:
        scores: (N,).
        labels: 1 or 0, (N,).
    """
    above = scores[labels == 1][:, None] - scores[labels == 0][None]
    return float(((above > 0) + 0.5 * (above == 0)).mean()) if above.size else float("nan")


def auc_interval(scores: np.ndarray, labels: np.ndarray, patients: Sequence) -> Interval:
    """Return the area under the ROC curve with its interval, drawn by patient.

    Nodules without a label (NaN) are left out.
    """
    is_known = ~np.isnan(labels)
    rows = np.stack([scores, labels], 1)[is_known]
    statistic: Callable[[np.ndarray], float] = lambda part: auc(part[:, 0], part[:, 1])  # noqa: E731
    return bootstrap_interval(rows, statistic, groups=list(np.asarray(patients)[is_known]))
