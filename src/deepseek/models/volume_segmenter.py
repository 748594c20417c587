"""From a volume as it was scanned to the class of each of its voxels.

Labels are brought back to the voxels of the scan. Shapes: C channels, D H W voxels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from deepseek.datasets.patch_sampling import IGNORE_INDEX
from deepseek.datasets.resampling import labels_like
from deepseek.datasets.spec import DataSpec
from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_transforms import parse_volume_transform
from deepseek.errors import ConfigError
from deepseek.models.engine import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.volume_predictor import (
    OnWindows,
    VolumePredictor,
    WindowOptions,
    check_numbers,
)
from deepseek.registry import import_extra

OnProbs = Callable[[np.ndarray, np.ndarray], None]
"""Given probabilities (K, d, H, W) and labels (d, H, W) of some slices of a prepared volume."""


class VolumeSegmenter(VolumePredictor[Volume]):
    """Finds the class of every voxel, uint8 or uint16 (1, D, H, W), in its place.

    Where no window is computed it is class 0. A connected part of a class that has nothing in the
    region of the options, where they have one, is class 0 too; one that touches it stays whole.

    Args:
        engine: that was trained on a `VolumeDataset`, on its device.
        options: how volumes are computed.

    Raises:
        ConfigError: the model was trained on something else, or an option is out of its range.
    """

    def __init__(self, engine: ModelEngine, options: WindowOptions | None = None) -> None:
        super().__init__(engine, volume_spec(engine), options)
        window = self.spec.fields["inputs"].shape[1:]
        self.sliding_window = self._windows_of(engine, window, self.options.flips)

    def _find(
        self, volume: Volume, prepared: Volume, mask: np.ndarray | None, on_windows: OnWindows
    ) -> Volume:
        labels = self.find_labels(prepared.voxels, mask, on_windows)
        return restore_labels(labels, prepared.affine, volume.voxels.shape[1:], volume.affine)

    def find_beside(
        self,
        volume: Volume,
        labels: Volume,
        on_probs: OnProbs,
        *,
        where: str = "the volume",
        on_windows: OnWindows = lambda done, total: None,
    ) -> Volume:
        """Return what calling it returns, and hand probabilities and known labels on meanwhile.

        Args:
            volume: as `read_volume` returns it.
            labels: of its voxels, (1, D, H, W); -100 where they are not known.
            on_probs: given both, slices at a time; labels are -100 where no window is computed.
            where: what it is called in messages.
            on_windows: told how many windows are done, and of how many.
        """
        prepared, mask = self._prepare(volume, where)
        transform = parse_volume_transform(self.spec.transform or "")
        labels = replace(
            labels, affine=volume.affine
        )  # the same voxels; headers differ by rounding
        placed = transform.place(
            labels, is_labels=True, max_voxels=self.options.max_voxels, where=where
        )
        known = placed.voxels[0].astype(np.int64)
        found = self.find_labels(prepared.voxels, mask, on_windows, (known, on_probs))
        return restore_labels(found, prepared.affine, volume.voxels.shape[1:], volume.affine)

    def find_labels(
        self,
        voxels: np.ndarray,
        mask: np.ndarray | None = None,
        on_windows: OnWindows = lambda done, total: None,
        beside: tuple[np.ndarray, OnProbs] | None = None,
    ) -> np.ndarray:
        """Return the classes of a prepared volume (C, D, H, W): uint8 or uint16 (D, H, W).

        Args:
            voxels: what `prepare_volume` returns.
            mask: bool (D, H, W), where there is something to look for; parts beside it are left
                out.
            on_windows: told how many windows are done, and of how many.
            beside: known labels (D, H, W), and what is given probabilities and them.
        """
        dtype = torch.uint8 if self.spec.num_classes <= 256 else torch.uint16
        device = self._engine.device

        handed = None if beside is None else _handed_on(self.sliding_window.window, *beside)

        def finish(logits: Tensor) -> Tensor:
            check_numbers(logits)
            if handed is not None:
                handed(logits)
            # where no window is computed all are infinite, of which the first is taken
            return logits.argmax(0).to(dtype)

        there = None if mask is None else torch.from_numpy(np.ascontiguousarray(mask))[None]
        with evaluating(self._engine):
            labels = self.sliding_window(
                self._tensor(voxels).to(device), there, finish=finish,
                fill=math.inf, on_windows=on_windows,
            )  # fmt: skip
        found = labels[0].cpu().numpy()
        return found if mask is None else _touching(found, mask)


def _handed_on(
    window: Sequence[int], known: np.ndarray, on_probs: OnProbs
) -> Callable[[Tensor], None]:
    """Return what takes the logits of slices in their order, those of the padding too."""
    spare = [max(extent - size, 0) for extent, size in zip(window, known.shape, strict=True)]
    pairs = [(count // 2, count - count // 2) for count in spare]
    padded = np.pad(known, pairs, constant_values=IGNORE_INDEX)
    first = 0

    def take(logits: Tensor) -> None:
        nonlocal first
        end = first + logits.shape[1]
        probs = logits.float().softmax(0).cpu().numpy()
        labels = np.where(np.isnan(probs[0]), IGNORE_INDEX, padded[first:end])
        on_probs(np.nan_to_num(probs, nan=0.0), labels)
        first = end

    return take


def _touching(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return labels (D, H, W) without the connected parts of a class that have none of a mask.

    Windows reach beyond it: what lies wholly outside would be reported where a window happens to
    be, and elsewhere not.

    Raises:
        MissingExtraError: scipy is missing.
    """
    ndimage = import_extra("scipy.ndimage", "medical")
    kept = labels.copy()
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        parts, count = ndimage.label(labels[box] == number, np.ones((3, 3, 3)))
        is_kept = np.zeros(count + 1, bool)
        is_kept[parts[mask[box]]] = True
        is_kept[0] = True  # what is not of this class
        kept[box][~is_kept[parts]] = 0
    return kept


def takes_volumes(spec: DataSpec | None) -> bool:
    """Return whether a model finds a class for every voxel of a volume."""
    inputs = spec.fields.get("inputs") if spec else None
    is_volume = inputs is not None and len(inputs.shape) == 4
    return spec is not None and is_volume and spec.task == "segmentation"


def volume_spec(engine: ModelEngine) -> DataSpec:
    """Return what a model takes, if that is volumes.

    Raises:
        ConfigError: it was trained on something else.
    """
    spec = engine.spec
    if spec is None or not takes_volumes(spec):
        raise ConfigError(
            "the model was not trained to find a class for every voxel of a volume",
            fix="give a model that was trained on a VolumeDataset",
        )
    return spec


def restore_labels(
    labels: np.ndarray, prepared: np.ndarray, shape: Sequence[int], affine: np.ndarray
) -> Volume:
    """Return the labels of a prepared volume on the voxels of the scan.

    Args:
        labels: (D, H, W), of the prepared volume.
        prepared: its affine.
        shape: (D, H, W) of the scan.
        affine: of the scan.
    """
    return labels_like(Volume(labels[None], prepared), shape, affine)


def measure_ml(labels: Volume, num_classes: int) -> list[float]:
    """Return how much of a volume each class has, in millilitres."""
    counts = np.bincount(labels.voxels.ravel(), minlength=num_classes)
    voxel_mm3 = abs(np.linalg.det(labels.affine[:3, :3]))
    return (counts * voxel_mm3 / 1000).tolist()
