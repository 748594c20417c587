"""Malignancy, texture and other scores of nodules that were found, from one file.

A file is safetensors with JSON in its metadata: nothing in it is run. It is learnt from cubes by
`fit_scores` on form and density; deep features would need the U-Net beside it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deepseek.datasets.volume import Volume
from deepseek.errors import ConfigError, DataError
from deepseek.medical.nodule_crops import CUBE_VOXELS, SPACING_MM, cube_at, mask_of, shades_of
from deepseek.medical.nodule_cubes import NUM_FOLDS, SCORES, NoduleCubes
from deepseek.medical.nodule_features import nodule_features
from deepseek.medical.nodule_scores import (
    ScoreModel,
    auc_interval,
    fit_scores,
    form_features,
    malignancy_labels,
)
from deepseek.medical.threshold_segmentation import largest_bright_part
from deepseek.models.center_detector import SCORE_RANGE
from deepseek.registry import did_you_mean
from deepseek.trainer.bootstrap import Interval
from deepseek.whole_file import replacing

FORMAT = "deepseek nodule scores 1"
_MAX_BYTES = 16 * 2**20
_TENSORS = ("mean", "scale", "weights", "offsets")


@dataclass(frozen=True, eq=False)
class NoduleScorer:
    """Scores of 1 to 5, as radiologists of LIDC-IDRI give them.

    Attributes:
        names: of the scores, S.
        feature_names: F, in the order of the weights.
        model: the weights.
        window_hu: of the cubes that it was learnt from.
        num_nodules: that it was learnt from.
        malignancy_auc: of 4 and 5 against 1 and 2, of patients left out; `None` if unknown.
    """

    names: tuple[str, ...]
    feature_names: tuple[str, ...]
    model: ScoreModel
    window_hu: tuple[float, float]
    num_nodules: int
    malignancy_auc: Interval | None = None

    @classmethod
    def fit(
        cls,
        cubes: NoduleCubes,
        names: Sequence[str] = ("malignancy", "texture"),
        num_folds: int = NUM_FOLDS,
    ) -> "NoduleScorer":
        """Learn scores from cubes, and measure the malignancy on patients that are left out.

        Args:
            cubes: with these scores.
            names: of `SCORES`.
            num_folds: parts of the patients, each left out once.

        Raises:
            ConfigError: a score is not known, or the cubes are not at 1 mm or of too few patients.
            DataError: the cubes have no such score, or of fewer than two nodules.
        """
        for name in names:
            if name not in SCORES:
                raise ConfigError(f"score {name!r} is unknown", fix=did_you_mean(name, SCORES))
            if name not in cubes.scores:
                raise DataError(f"the cubes have no {name}", fix="leave it out of names")
        if cubes.spacing_mm != SPACING_MM or not names:
            raise ConfigError(
                f"cubes at {cubes.spacing_mm:g} mm, or no names: scores are of cubes at 1 mm",
                fix="resample the cubes, or name a score",
            )
        features = form_features(cubes)
        given = np.stack([cubes.scores[name] for name in names], 1)
        first = nodule_features(cubes.voxels[0], cubes.masks[0], cubes.spacing_mm)
        area = None
        if "malignancy" in names:
            area = _left_out(features, cubes, num_folds)
        return cls(
            tuple(names), tuple(first), fit_scores(features, given), cubes.window_hu, len(cubes),
            area,
        )  # fmt: skip

    def describe(self) -> str:
        """Return in words what was learnt, and how well the malignancy is told."""
        words = f"{', '.join(self.names)} of {self.num_nodules} nodules"
        if self.malignancy_auc is None:
            return words
        return (
            f"{words}; AUC of malignancy 4-5 against 1-2, patients left out: {self.malignancy_auc}"
        )

    def score(
        self, volume: Volume, findings: Sequence[Mapping], labels: Volume | None = None
    ) -> list[dict[str, float]]:
        """Return the scores of each finding in a scan, kept within 1 to 5.

        Its outline is what `labels` has near it; without, what is bright and hangs together within
        its diameter, or else a ball.

        Args:
            volume: the scan, (1, D, H, W) in HU.
            findings: with `x`, `y`, `z` and `diameter_mm`.
            labels: of the voxels of the scan, where a nodule is not 0.

        Raises:
            DataError: the scan has several channels, or the file has features of another version.
        """
        if len(volume.voxels) != 1:
            raise DataError(f"a scan of {len(volume.voxels)} channels", fix="give a CT")
        upright = volume.reoriented("SPL")
        known = None if labels is None else labels.reoriented("SPL")
        return [self._score_one(upright, each, known) for each in findings]

    def _score_one(
        self, volume: Volume, finding: Mapping, labels: Volume | None
    ) -> dict[str, float]:
        center = np.array([finding[axis] for axis in "xyz"], np.float64)
        cube = cube_at(volume, center, CUBE_VOXELS)
        shades = shades_of(cube, self.window_hu).astype(np.float32) / 255
        mask = mask_of(cube, center, finding["diameter_mm"] / 2, labels)
        if labels is None:
            bright = largest_bright_part(np.where(mask == 1, shades, 0))
            mask = bright if bright.any() else mask
        found = nodule_features(shades, mask, SPACING_MM)
        if not found.keys() >= set(self.feature_names):
            raise DataError(
                "the scores were learnt from features that this version does not have",
                fix="fit the scores again",
            )
        row = np.array([[found[name] for name in self.feature_names]])
        values = np.clip(self.model.predict(row)[0], *SCORE_RANGE)
        return dict(zip(self.names, values.tolist(), strict=True))

    def save(self, path: str | os.PathLike) -> Path:
        """Write a file, in one move, and return its path."""
        area = self.malignancy_auc
        about = {
            "names": self.names,
            "feature_names": self.feature_names,
            "window_hu": self.window_hu,
            "num_nodules": self.num_nodules,
            "malignancy_auc": None if area is None else [area.value, area.low, area.high],
        }
        tensors = {name: np.ascontiguousarray(getattr(self.model, name)) for name in _TENSORS}
        with replacing(Path(path)) as draft:
            save_file(tensors, draft, {"format": FORMAT, "about": json.dumps(about)})
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "NoduleScorer":
        """Read a file that `save` wrote.

        Raises:
            DataError: it is none, or is damaged.
        """
        file = Path(path)
        if not file.is_file() or file.stat().st_size > _MAX_BYTES:
            raise DataError(f"{file} is no file of scores", fix="give what NoduleScorer.save wrote")
        try:
            with safe_open(file, "numpy") as content:
                metadata = content.metadata() or {}
                tensors = [content.get_tensor(name).astype(np.float64) for name in _TENSORS]
            about = json.loads(metadata["about"]) if metadata.get("format") == FORMAT else {}
            area = about["malignancy_auc"]
            names, features = tuple(about["names"]), tuple(about["feature_names"])
            low, high = about["window_hu"]
            scorer = cls(
                names, features, ScoreModel(*tensors), (float(low), float(high)),
                int(about["num_nodules"]), None if area is None else Interval(*map(float, area)),
            )  # fmt: skip
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file} is no file of scores, or is damaged: {type(error).__name__}",
                fix="give what NoduleScorer.save wrote",
            ) from error
        sizes = [(len(features),), (len(features),), (len(features), len(names)), (len(names),)]
        if [tensor.shape for tensor in tensors] != sizes or not all(
            np.isfinite(tensor).all() for tensor in tensors
        ):
            raise DataError(
                f"{file}: weights do not fit the names of scores and features, or are not finite",
                fix="write it anew",
            )
        return scorer


def _left_out(features: np.ndarray, cubes: NoduleCubes, num_folds: int) -> Interval | None:
    """Return how well the malignancy is told of patients that are left out."""
    folds, said = cubes.folds(num_folds), np.full(len(cubes), np.nan)
    for fold in range(num_folds):
        rest = folds != fold
        given = cubes.scores["malignancy"][rest, None]
        if (~np.isnan(given)).sum() > 1:
            said[~rest] = fit_scores(features[rest], given).predict(features[~rest])[:, 0]
    labels = np.where(np.isnan(said), np.nan, malignancy_labels(cubes.scores))
    if not {0.0, 1.0} <= set(labels[~np.isnan(labels)].tolist()):
        return None
    return auc_interval(said, labels, cubes.patients.tolist())
