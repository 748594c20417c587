"""From a volume as it was scanned to the centres and diameters of what a detector finds in it.

Windows are laid over the places of the detector's map, not over voxels, so that maps of
neighbouring windows lie on each other.

Shapes: N windows, C channels, D H W voxels, P centres; `d h w` are places of the map.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.datasets.spec import DataSpec
from deepseek.datasets.volume import Volume
from deepseek.errors import ConfigError
from deepseek.models.center_detector import SCORE_RANGE
from deepseek.models.engine import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.peaks import Peaks, find_peaks
from deepseek.models.sliding_window import mirrored
from deepseek.models.volume_predictor import (
    OnWindows,
    VolumePredictor,
    WindowOptions,
    check_numbers,
)

DEFAULT_MIN_SCORE = 0.1
MAX_CENTERS = 100
"""Of a scan: the surest that are left after suppression, and of a region."""
_MAX_PEAKS = 2000
"""Of a scan, before: suppression compares each with each."""
NOTHING = -30.0
"""Logit and log diameter where no window was computed."""


@dataclass(frozen=True, eq=False)
class Centers:
    """What was found in a volume, the highest score first.

    Attributes:
        points_mm: x, y, z in the patient (LPS), float64 (P, 3).
        diameters_mm: float64 (P,).
        scores: probabilities, float64 (P,).
        told: scores that the model tells of each, by name, such as `malignancy`; 1 to 5, float64
            (P,).
    """

    points_mm: np.ndarray
    diameters_mm: np.ndarray
    scores: np.ndarray
    told: Mapping[str, np.ndarray] = field(default_factory=dict)


class VolumeDetector(VolumePredictor[Centers]):
    """Finds centres in whole volumes, in millimetres of the patient.

    What does not touch the region of the options, where they have one, is not reported.

    Args:
        engine: a detector of centres of one class, such as `CenterDetector3D`, on its device.
        options: how volumes are computed.
        min_score: probability below which a centre is not reported; by default what the model's
            validation settled (`spec.min_score`), or 0.1 without one.

    Raises:
        ConfigError: the model was trained on something else, or an argument is out of its range.
    """

    def __init__(
        self,
        engine: ModelEngine,
        options: WindowOptions | None = None,
        *,
        min_score: float | None = None,
    ) -> None:
        super().__init__(engine, detector_spec(engine), options)
        if min_score is None:
            own = self.spec.min_score
            min_score = DEFAULT_MIN_SCORE if own is None else own
        flips = sorted(set(self.options.flips))
        if not 0 <= min_score <= 1 or not set(flips) <= {0, 1, 2}:
            raise ConfigError(
                f"min_score={min_score} is not in 0..1, or flips={flips} not of 0, 1, 2",
                fix="give a probability, and axes of a volume",
            )
        self.min_score = min_score
        self._stride = self._find_stride()
        window = self.spec.fields["inputs"].shape[1:]
        places = [size // step for size, step in zip(window, self._stride, strict=True)]
        # what is mirrored is voxels, not places
        self._maps = mirrored(engine, flips, torch.float32)
        self._sliding_window = self._windows_of(self._compute, places, ())

    def _find(
        self, volume: Volume, prepared: Volume, mask: np.ndarray | None, on_windows: OnWindows
    ) -> Centers:
        rows = self.find_rows(prepared.voxels, prepared.spacing_mm, mask, on_windows)
        told = dict(zip(self.told_names, rows[:, 5:].T, strict=True))
        return Centers(prepared.to_mm(rows[:, :3]), rows[:, 3], rows[:, 4], told)

    @property
    def told_names(self) -> tuple[str, ...]:
        """What the model tells of each centre beside size and score."""
        return told_names(self.spec)

    def find_rows(
        self,
        voxels: np.ndarray,
        spacing_mm: Sequence[float],
        mask: np.ndarray | None = None,
        on_windows: OnWindows = lambda done, total: None,
    ) -> np.ndarray:
        """Return what is found in a prepared volume, (P, 5 and more).

        A row is d, h, w, diameter in mm, score, and what else is told. These are
        `MAX_CENTERS` at the most, the surest; a warning says that there were more.

        Args:
            voxels: what `prepare_volume` returns, (C, D, H, W).
            spacing_mm: of these.
            mask: bool (D, H, W), where there is something to look for.
            on_windows: told how many windows are done, and of how many.
        """
        there = None if mask is None else self._fold_mask(mask)
        with evaluating(self._engine):
            maps = self._sliding_window(
                self._fold(self._tensor(voxels)), there, fill=NOTHING,
                on_windows=on_windows,
            )[0]  # fmt: skip
        check_numbers(maps)
        peaks = find_peaks(
            maps[0], maps[-1], self._stride, spacing_mm, max_peaks=_MAX_PEAKS,
            min_score=max(self.min_score, 1e-6),
        )  # fmt: skip
        sizes = torch.tensor(voxels.shape[1:], device=peaks.indices.device)
        # places of the map that the volume was filled up with are no finds
        is_kept = (peaks.indices < sizes - 0.5).all(1)
        if there is not None:
            is_kept &= self._touches(there[0], peaks, spacing_mm).to(is_kept.device)
        found = [peaks.indices, peaks.diameters_mm[:, None], peaks.scores[:, None]]
        found.append(self._told_at(maps, peaks))
        rows = torch.cat(found, 1)[is_kept].cpu().double().numpy()
        if len(rows) > MAX_CENTERS:
            warnings.warn(
                f"more than {MAX_CENTERS} centres score {self.min_score:g} or more in a scan: the"
                f" surest {MAX_CENTERS} are kept; a higher min_score leaves fewer",
                stacklevel=2,
            )
        return rows[:MAX_CENTERS]

    def _told_at(self, maps: Tensor, peaks: Peaks) -> Tensor:
        """Return the scores between the first and the last map at each peak, 1 to 5, (P, S)."""
        steps = torch.tensor(self._stride, dtype=torch.float32, device=peaks.indices.device)
        places = ((peaks.indices - (steps - 1) / 2) / steps).round().long()
        sizes = torch.tensor(maps.shape[1:], device=places.device)
        d, h, w = torch.minimum(places.clamp(min=0), sizes - 1).unbind(1)
        return maps[1:-1, d, h, w].float().T.clamp(*SCORE_RANGE)

    def _find_stride(self) -> list[int]:
        """Return the voxels of a place of the map, along D, H, W."""
        shape = self.spec.fields["inputs"].shape
        with evaluating(self._engine), torch.no_grad():
            maps = self._engine.outputs_of(torch.zeros(1, *shape))
        sizes = maps.shape[2:]
        if maps.ndim != 5 or any(n % k for n, k in zip(shape[1:], sizes, strict=True)):
            raise ConfigError(
                f"windows of {list(shape)} have maps of {list(maps.shape[1:])}: a place of them is"
                " no whole number of voxels",
                fix="give a detector whose strides divide its window",
            )
        return [size // extent for size, extent in zip(shape[1:], sizes, strict=True)]

    def _fold(self, voxels: Tensor) -> Tensor:
        """Return (1, C, D, H, W) as (1, C * voxels of a place, d, h, w), filled up with zeros."""
        spare = [-size % step for size, step in zip(voxels.shape[2:], self._stride, strict=True)]
        padded = F.pad(voxels, [side for count in spare[::-1] for side in (0, count)])
        batch, channels, *sizes = padded.shape
        d, h, w = self._stride
        parts = padded.view(batch, channels, sizes[0] // d, d, sizes[1] // h, h, sizes[2] // w, w)
        folded = parts.permute(0, 1, 3, 5, 7, 2, 4, 6)
        return folded.reshape(batch, -1, sizes[0] // d, sizes[1] // h, sizes[2] // w)

    def _compute(self, windows: Tensor) -> Tensor:
        """Return the maps (N, K, d, h, w) of folded windows: means over the ways to mirror them."""
        d, h, w = self._stride
        batch, _, *sizes = windows.shape
        parts = windows.view(batch, -1, d, h, w, *sizes).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return self._maps(parts.reshape(batch, -1, sizes[0] * d, sizes[1] * h, sizes[2] * w))

    def _fold_mask(self, mask: np.ndarray) -> Tensor:
        """Return which places of the map have any of a mask (D, H, W), bool (1, d, h, w)."""
        there = torch.from_numpy(np.ascontiguousarray(mask))[None, None]
        return self._fold(there.to(torch.uint8)).any(1)

    def _touches(self, mask: Tensor, peaks: Peaks, spacing_mm: Sequence[float]) -> Tensor:
        """Return which centres have any of the region within their radius, bool (P,)."""
        steps = np.array(self._stride)
        places = peaks.indices.cpu().numpy() / steps
        reach = peaks.diameters_mm.cpu().numpy()[:, None] / 2 / (steps * np.array(spacing_mm))
        low = np.floor(np.maximum(places - reach, 0)).astype(int)
        high = np.ceil(places + reach).astype(int) + 1
        found = [
            bool(mask[tuple(slice(a, b) for a, b in zip(*ends, strict=True))].any())
            for ends in zip(low.tolist(), high.tolist(), strict=True)
        ]
        return torch.tensor(found, dtype=torch.bool)


def told_names(spec: DataSpec) -> tuple[str, ...]:
    """Return what a detector tells of each centre beside size and score."""
    begin = "score."
    return tuple(name.removeprefix(begin) for name in spec.fields if name.startswith(begin))


def finds_centers(spec: DataSpec | None) -> bool:
    """Return whether a model finds centres in volumes."""
    inputs = spec.fields.get("inputs") if spec else None
    is_volume = inputs is not None and len(inputs.shape) == 4
    return spec is not None and is_volume and spec.task == "detection"


def detector_spec(engine: ModelEngine) -> DataSpec:
    """Return what a model takes, if it finds centres of one class in volumes.

    Raises:
        ConfigError: it was trained on something else.
    """
    spec = engine.spec
    if spec is None or not finds_centers(spec) or len(spec.class_names) != 1:
        raise ConfigError(
            "the model was not trained to find centres of one class in volumes",
            fix="give a model that was trained on a NoduleDataset with targets='centers'",
        )
    return spec
