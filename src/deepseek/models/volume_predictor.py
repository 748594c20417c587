"""Whole volumes, window by window: what finding classes and finding centres have in common.

What is done to a volume before is what the spec of the model says.

Shapes: N windows, C channels, D H W voxels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from deepseek.datasets.spec import DataSpec
from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import DEFAULT_MAX_VOXELS
from deepseek.datasets.volume_transforms import parse_volume_transform
from deepseek.errors import DataError
from deepseek.models.engine import ModelEngine
from deepseek.models.sliding_window import DEFAULT_OVERLAP, SlidingWindow
from deepseek.registry import Registry

Found = TypeVar("Found")
OnWindows = Callable[[int, int], None]
"""Told how many windows are done, and of how many."""
Region = Callable[[Volume], Volume]
"""From a volume to a mask of where there is something to look for, uint8 (1, D, H, W)."""
REGIONS: Registry[Region] = Registry(
    "region",
    {name: f"deepseek.medical.regions:find_{name}" for name in ("body", "lungs")},
)


@dataclass(frozen=True)
class WindowOptions:
    """How whole volumes are computed.

    Attributes:
        overlap: of windows, 0 <= overlap < 1.
        batch_size: windows computed at a time.
        flips: axes of the prepared volume, 0 for D; outputs are means over all ways to mirror them.
        compute_dtype: of autocast, such as `torch.bfloat16`; `None`: as the weights are.
        compiles: compile the model.
        region: where there is something to look for; windows without any of it are not computed.
        max_voxels: of a volume, as scanned and at the spacing of the model.
    """

    overlap: float = DEFAULT_OVERLAP
    batch_size: int = 4
    flips: Sequence[int] = ()
    compute_dtype: torch.dtype | None = None
    compiles: bool = False
    region: Region | None = None
    max_voxels: int = DEFAULT_MAX_VOXELS


class VolumePredictor(ABC, Generic[Found]):
    """Finds something in whole volumes, in windows as large as the samples of training.

    Attributes:
        spec: what the model takes.
        options: how volumes are computed.

    Args:
        engine: on its device.
        spec: its own.
        options: as above; those of the class by default.
    """

    def __init__(self, engine: ModelEngine, spec: DataSpec, options: WindowOptions | None) -> None:
        self.spec, self._engine = spec, engine
        self.options = options or WindowOptions()

    def __call__(
        self,
        volume: Volume,
        *,
        where: str = "the volume",
        on_windows: OnWindows = lambda done, total: None,
    ) -> Found:
        """Return what is found in a volume.

        Args:
            volume: as `read_volume` returns it.
            where: what it is called in messages.
            on_windows: told how many windows are done, and of how many.

        Raises:
            DataError: it has other channels, or would be too large at the spacing of the model.
        """
        prepared, mask = self._prepare(volume, where)
        return self._find(volume, prepared, mask, on_windows)

    def _prepare(self, volume: Volume, where: str) -> tuple[Volume, np.ndarray | None]:
        """Return what is computed of a volume, and where there is something to look for."""
        limit, region = self.options.max_voxels, self.options.region
        prepared = prepare_volume(volume, self.spec, limit, where)
        if region is None:
            return prepared, None
        return prepared, place_region(region, volume, self.spec, limit, where)[0]

    @abstractmethod
    def _find(
        self, volume: Volume, prepared: Volume, mask: np.ndarray | None, on_windows: OnWindows
    ) -> Found:
        """Return what is found in a volume, of what was prepared of it, where the mask says."""

    def _tensor(self, voxels: np.ndarray) -> Tensor:
        """Return voxels as a batch of one, in the number format of the weights."""
        batch, kind = torch.from_numpy(voxels)[None], self._engine.device.type
        if torch.is_autocast_enabled(kind):  # which rounds them itself
            return batch
        return batch.to(self._engine.compute_dtype(kind))

    def _windows_of(
        self, forward: Callable[[Tensor], Tensor], window: Sequence[int], flips: Sequence[int]
    ) -> SlidingWindow:
        own = self.options
        return SlidingWindow(
            forward, window, overlap=own.overlap, batch_size=own.batch_size, flips=flips,
            compute_dtype=own.compute_dtype, compiles=own.compiles, device=self._engine.device,
        )  # fmt: skip


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


def check_numbers(outputs: Tensor) -> None:
    """Refuse outputs that are NaN: they would read as the first class, or as nothing.

    Raises:
        DataError: some are.
    """
    if outputs.isnan().any():
        raise DataError(
            "the outputs of the model are not numbers (NaN): its weights are not, or fp16 cannot"
            " hold what it computes",
            fix="compute in bf16 or fp32; if that does not help, train the model again",
        )
