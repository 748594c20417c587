"""From a volume as it was scanned to the class of each of its voxels.

What is done to a volume before is what the spec of the model says; labels are brought back to the
voxels of the scan. Shapes: C channels, D H W voxels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from deepseek.datasets.resampling import labels_like
from deepseek.datasets.spec import DataSpec
from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import DEFAULT_MAX_VOXELS
from deepseek.datasets.volume_transforms import parse_volume_transform
from deepseek.errors import ConfigError, DataError
from deepseek.models.engine import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.sliding_window import DEFAULT_OVERLAP, SlidingWindow
from deepseek.registry import Registry

Region = Callable[[Volume], Volume]
"""From a volume to a mask of where there is something to look for, uint8 (1, D, H, W)."""
REGIONS: Registry[Region] = Registry(
    "region",
    {name: f"deepseek.medical.regions:find_{name}" for name in ("body", "lungs")},
)


class VolumeSegmenter:
    """Finds the class of every voxel, window by window.

    Windows are as large as the samples that the model was trained on.

    Args:
        engine: that was trained on a `VolumeDataset`, on its device.
        overlap: of windows, 0 <= overlap < 1.
        batch_size: windows computed at a time.
        flips: axes of the prepared volume, 0 for D; logits are means over all ways to mirror them.
        compute_dtype: of autocast, such as `torch.bfloat16`; `None`: as the weights are.
        compiles: compile the model.
        region: where there is something to look for; windows without any of it are not computed,
            and are of class 0.
        max_voxels: of a volume at the spacing of the model.

    Raises:
        ConfigError: the model was trained on something else, or an argument is out of its range.
    """

    def __init__(
        self,
        engine: ModelEngine,
        *,
        overlap: float = DEFAULT_OVERLAP,
        batch_size: int = 4,
        flips: Sequence[int] = (),
        compute_dtype: torch.dtype | None = None,
        compiles: bool = False,
        region: Region | None = None,
        max_voxels: int = DEFAULT_MAX_VOXELS,
    ) -> None:
        self.spec = volume_spec(engine)
        self._engine, self._region, self._max_voxels = engine, region, max_voxels
        self.sliding_window = SlidingWindow(
            engine, self.spec.fields["inputs"].shape[1:], overlap=overlap, batch_size=batch_size,
            flips=flips, compute_dtype=compute_dtype, compiles=compiles, device=engine.device,
        )  # fmt: skip

    def __call__(
        self,
        volume: Volume,
        *,
        where: str = "the volume",
        on_windows: Callable[[int, int], None] = lambda done, total: None,
    ) -> Volume:
        """Return the class of each voxel of a volume, uint8 or uint16 (1, D, H, W), in its place.

        Args:
            volume: as `read_volume` returns it.
            where: what it is called in messages.
            on_windows: told how many windows are done, and of how many.

        Raises:
            DataError: it has other channels, or would be too large at the spacing of the model.
        """
        prepared = prepare_volume(volume, self.spec, self._max_voxels, where)
        mask = None
        if self._region is not None:
            mask = place_region(self._region, volume, self.spec, self._max_voxels, where)[0]
        labels = self.find_labels(prepared.voxels, mask, on_windows)
        return restore_labels(labels, prepared.affine, volume.voxels.shape[1:], volume.affine)

    def find_labels(
        self,
        voxels: np.ndarray,
        mask: np.ndarray | None = None,
        on_windows: Callable[[int, int], None] = lambda done, total: None,
    ) -> np.ndarray:
        """Return the classes of a prepared volume (C, D, H, W): uint8 or uint16 (D, H, W).

        Args:
            voxels: what `prepare_volume` returns.
            mask: bool (D, H, W), where there is something to look for.
            on_windows: told how many windows are done, and of how many.
        """
        dtype = torch.uint8 if self.spec.num_classes <= 256 else torch.uint16
        device = self._engine.device

        def finish(logits: Tensor) -> Tensor:
            return logits.argmax(0).to(dtype)

        there = None if mask is None else torch.from_numpy(np.ascontiguousarray(mask))[None]
        with evaluating(self._engine):
            labels = self.sliding_window(
                torch.from_numpy(voxels)[None].to(device), there, finish=finish,
                on_windows=on_windows,
            )  # fmt: skip
        return labels[0].cpu().numpy()


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


def prepare_volume(volume: Volume, spec: DataSpec, max_voxels: int, where: str) -> Volume:
    """Return a volume as the model takes it: turned, resampled and scaled as in training.

    Raises:
        DataError: it has other channels, or would be too large.
    """
    channels = spec.fields["inputs"].shape[0]
    if len(volume.voxels) != channels:
        raise DataError(
            f"{where} has {len(volume.voxels)} channels, the model takes {channels}",
            fix="give volumes of the kind that the model was trained on",
        )
    transform = parse_volume_transform(spec.transform or "")
    placed = transform.place(volume, max_voxels=max_voxels, where=where)
    return Volume(transform.scale_intensity(placed.voxels), placed.affine)


def place_region(
    region: Region, volume: Volume, spec: DataSpec, max_voxels: int, where: str
) -> np.ndarray:
    """Return where there is something to look for in a prepared volume, bool (1, D, H, W)."""
    transform = parse_volume_transform(spec.transform or "")
    placed = transform.place(region(volume), is_labels=True, max_voxels=max_voxels, where=where)
    return placed.voxels > 0


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
