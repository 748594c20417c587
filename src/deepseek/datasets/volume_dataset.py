"""Volumes with a class for every voxel, as patches to learn from and whole to evaluate on.

What is random in a sample is a function of (seed, epoch, index), whoever computes it.
Shapes: B batch, C channels, D slices, H rows, W columns.
"""

import copy
import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepseek.datasets.cache_folder import cache_folder
from deepseek.datasets.patch_sampling import cut, sample_patch
from deepseek.datasets.randomness import Draws, current_epoch, permutation
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import DEFAULT_MAX_VOXELS
from deepseek.datasets.volume_patients import SplitBy, group_volumes
from deepseek.datasets.volume_source import find_volumes, name_classes
from deepseek.datasets.volume_store import PreparedVolume, prepare_volumes
from deepseek.datasets.volume_transforms import VolumeTransform, parse_volume_transform
from deepseek.datasets.workers import note_sample
from deepseek.errors import ConfigError, DataError

DEFAULT_MULTIPLE = 16
"""Whole volumes without a patch are filled up to a multiple of so many voxels along each axis."""

_FOLD_SEED = 20110
"""Of folds alone: another seed of a run must not move patients."""


class VolumeDataset(torch.utils.data.Dataset):
    """Volumes and the labels of their voxels.

    Every volume is read, oriented, resampled and scaled once, when the set is made; see `cache`.

    Args:
        path: a folder with `images/` and `labels/` (or `imagesTr/` and `labelsTr/`), or a CSV file
            with the columns `image` and `label`, and `patient` if it has one. Each is a `.nii`,
            `.nii.gz`, `.mhd`, `.mha`, `.npy` or `.npz` file, or a folder with one DICOM series.
        transform: in the string language (`deepseek.datasets.volume_transforms`), such as
            `spacing_1x1x1+zscore+patch_64x64x64+flip+rotate_15`.
        class_names: of class 0, 1, ...; by default from `dataset.json`, else numbers.
        foreground_share: of the patches, 0..1, that are centred on a voxel of a class but the
            first; each class that a volume holds as often.
        patches_per_volume: samples of each volume in an epoch.
        seed: of patches and augmentation.
        max_voxels: of a volume; a file that declares more is refused unread.
        cache: where prepared volumes are kept: "auto" (the user's cache folder, or
            `DEEPSEEK_CACHE`), a folder, or "off": in memory.
        split_by: what `split` does not divide: "patient", "volume", or "auto": patients where a
            column, DICOM headers or the names of files tell them (`volume_patients`).

    Raises:
        DataError: a volume or its labels cannot be used.
        ConfigError: an argument is out of its range.
    """

    lengths = None
    is_light = False

    def __init__(
        self,
        path: str | os.PathLike,
        transform: str = "zscore+patch_64x64x64",
        *,
        class_names: Sequence[str] | None = None,
        foreground_share: float = 0.33,
        patches_per_volume: int = 1,
        seed: int = 0,
        max_voxels: int = DEFAULT_MAX_VOXELS,
        cache: str | os.PathLike = "auto",
        split_by: SplitBy = "auto",
    ) -> None:
        _check_arguments(foreground_share, patches_per_volume, max_voxels)
        self._transform: VolumeTransform = parse_volume_transform(transform)
        _check_ignored(self._transform, patches_per_volume)
        self.foreground_share = foreground_share
        self.patches_per_volume = patches_per_volume
        self.seed = seed
        self._source = find_volumes(path)
        self._patients = np.unique(group_volumes(self._source, split_by), return_inverse=True)[1]
        self._volumes = prepare_volumes(
            self._source.pairs, self._transform, cache_folder(cache, "volumes"), max_voxels
        )
        _check_channels(self._volumes, str(path))
        found = {
            label for each in self._volumes for label in np.flatnonzero(each.get("counts")).tolist()
        }
        names = name_classes(class_names, self._source.class_names, found, str(path))
        self.class_names: tuple[str, ...] = names
        self._rows = np.arange(len(self._volumes))
        self._is_whole = self._transform.patch is None
        self._whole_shape = self._fit(self._rows.tolist())
        self.spec = self._make_spec()

    # -- what the set holds ------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows) * (1 if self._is_whole else self.patches_per_volume)

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.spec.fields["targets"].shape)
        num_patients = len(np.unique(self._patients[self._rows]))
        of_patients = f" of {num_patients} patients" if num_patients < len(self._rows) else ""
        return (
            f"VolumeDataset({self._source.path!r}: {self._source.layout}, {len(self._rows)}"
            f" volumes{of_patients}, {len(self.class_names)} classes, samples of {shape} voxels)"
        )

    @property
    def num_volumes(self) -> int:
        """Volumes, however many samples are taken of each."""
        return len(self._rows)

    @property
    def transform(self) -> str:
        """The transform, as text."""
        return self._transform.text

    def volume(self, number: int) -> tuple[Volume, np.ndarray]:
        """Return a prepared volume with its place, and its labels uint16 (D, H, W)."""
        prepared = self._volumes[int(self._rows[number])]
        return prepared.volume, prepared.get("labels")

    def describe(self, index: int) -> str:
        """Return the path of a sample's volume, for messages."""
        return str(self._source.pairs[self._row(self._check_index(index))].image)

    # -- samples -----------------------------------------------------------------------------

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch, _ = self.get_batch([self._check_index(index)], current_epoch())
        return {"inputs": batch["inputs"][0], "targets": batch["targets"][0]}

    def get_batch(
        self, indices: Sequence[int], epoch: int
    ) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
        """Return `inputs` (B, C, D, H, W) float32, `targets` (B, D, H, W) int64, `index` (B,).

        Outside a volume inputs are 0 and targets -100. Whole volumes are filled up to the largest
        of the batch and have `sizes` and `spacing_mm` (B, 3), those of each. No sample is ever bad:
        volumes were read when the set was made.
        """
        positions = [self._check_index(index) for index in indices]
        inputs, targets = [], []
        rows = [self._row(position) for position in positions]
        whole = self._fit(rows) if self._is_whole else None
        for position in positions:
            note_sample(position)
            found, known = self._sample(position, epoch, whole)
            inputs.append(torch.from_numpy(found))
            targets.append(torch.from_numpy(known))
        batch = {
            "inputs": torch.stack(inputs),
            "targets": torch.stack(targets),
            "index": torch.tensor(positions, dtype=torch.int64),
        }
        if self._is_whole:
            batch["sizes"] = torch.tensor([self._volumes[row].shape[1:] for row in rows])
            spacings = [self._volumes[row].spacing_mm for row in rows]
            batch["spacing_mm"] = torch.tensor(spacings, dtype=torch.float32)
        return batch, []

    def _sample(
        self, position: int, epoch: int, whole: tuple[int, int, int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        prepared = self._volumes[self._row(position)]
        voxels, labels = prepared.get("voxels"), prepared.get("labels")
        if whole is not None:
            return cut(voxels, labels, (0, 0, 0), whole)
        return sample_patch(
            voxels, labels, prepared.get("foreground"), self._transform,
            prepared.spacing_mm, self.foreground_share,
            Draws(self.seed, epoch, self._row(position), position % self.patches_per_volume),
        )  # fmt: skip

    # -- views -------------------------------------------------------------------------------

    def evaluation_view(self) -> "VolumeDataset":
        """Return the same volumes whole and unchanged, each once.

        Those of a batch are filled up to one shape: the largest size along each axis, rounded up
        to a multiple of the largest power of two that divides the patch.
        """
        view = copy.copy(self)
        view._is_whole = True
        view.spec = view._make_spec()
        return view

    def patches(self) -> "VolumeDataset":
        """Return patches without augmentation, about as many of each volume as cover one.

        A set without a patch stays whole.
        """
        patch = self._transform.patch
        if patch is None:
            return self.evaluation_view()
        view = copy.copy(self)
        steps = [self._transform.evaluation] if self._transform.evaluation else []
        sizes = "x".join(str(size) for size in patch)
        view._transform = parse_volume_transform("+".join([*steps, f"patch_{sizes}"]))
        pairs = [zip(self._volumes[row].shape[1:], patch, strict=True) for row in self._rows]
        covers = [math.prod(-(-size // extent) for size, extent in each) for each in pairs]
        view._is_whole, view.patches_per_volume = False, math.ceil(sum(covers) / len(covers))
        view.spec = view._make_spec()
        return view

    def split(
        self, share: float = 0.2, seed: int | None = None
    ) -> tuple["VolumeDataset", "VolumeDataset"]:
        """Return (training, validation) parts, the second as its `evaluation_view`.

        All volumes of a patient are in one of them, where patients are known.

        Args:
            share: of the patients for validation, 0..1; at least one.
            seed: which patients; the data set's own by default.
        """
        if not 0 < share < 1:
            raise ConfigError(f"share={share} is not between 0 and 1", fix="give a share like 0.2")
        own = self._patients[self._rows]
        patients = own[np.sort(np.unique(own, return_index=True)[1])]  # by their first volume
        count = max(round(share * len(patients)), 1)
        if count >= len(patients):
            raise DataError(
                f"{self._source.path}: splitting {len(self._rows)} volumes of {len(patients)}"
                " patients leaves a part empty",
                fix="give more volumes, or another share; split_by='volume' if names mislead",
            )
        order = permutation(len(patients), self.seed if seed is None else seed)
        is_held_out = np.isin(own, patients[order[:count]])
        training = self._part(self._rows[~is_held_out])
        return training, self._part(self._rows[is_held_out]).evaluation_view()

    def split_fold(self, fold: int, num_folds: int = 5) -> tuple["VolumeDataset", "VolumeDataset"]:
        """Return (training, validation) parts, the second as its `evaluation_view`.

        All volumes of a patient are in one of them, where patients are known; the folds are the
        same for any seed.

        Args:
            fold: which part is validated on, 0..num_folds-1.
            num_folds: parts.

        Raises:
            ConfigError: there is no such fold, or fewer patients than folds.
        """
        patients, own = np.unique(self._patients[self._rows], return_inverse=True)
        if not 2 <= num_folds <= len(patients) or not 0 <= fold < num_folds:
            raise ConfigError(
                f"fold={fold} of num_folds={num_folds}, of {len(patients)} patients",
                fix=f"give 2 to {len(patients)} folds, and one of 0..{num_folds - 1}",
            )
        fold_of = np.empty(len(patients), np.int64)
        fold_of[permutation(len(patients), _FOLD_SEED)] = np.arange(len(patients)) % num_folds
        is_in = fold_of[own] == fold
        return self._part(self._rows[~is_in]), self._part(self._rows[is_in]).evaluation_view()

    def _part(self, rows: np.ndarray) -> "VolumeDataset":
        view = copy.copy(self)
        view._rows = rows
        view._whole_shape = view._fit(view._rows.tolist())
        view.spec = view._make_spec()
        return view

    # -- inside ------------------------------------------------------------------------------

    def _make_spec(self) -> DataSpec:
        channels = self._volumes[0].shape[0]
        patch = self._transform.patch
        shape = self._whole_shape if self._is_whole or patch is None else patch
        counts = np.zeros(len(self.class_names), np.int64)
        for row in self._rows.tolist():
            found = self._volumes[row].get("counts")
            counts[: len(found)] += found
        return DataSpec(
            task="segmentation",
            fields={
                "inputs": FieldSpec((channels, *shape), "float32"),
                "targets": FieldSpec(tuple(shape), "int64"),
            },
            class_names=self.class_names,
            class_counts=tuple(counts.tolist()),
            transform=self._transform.evaluation,
        )

    def _fit(self, rows: Sequence[int]) -> tuple[int, int, int]:
        """Return the shape that these volumes fit into as a whole."""
        d, h, w = (
            -(-max(self._volumes[row].shape[axis] for row in rows) // step) * step
            for axis, step in enumerate(_multiples(self._transform.patch), start=1)
        )
        return d, h, w

    def _row(self, position: int) -> int:
        return int(self._rows[position if self._is_whole else position // self.patches_per_volume])

    def _check_index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            # IndexError, not ours: Python's iteration over a sequence ends by it.
            raise IndexError(f"index={index} is outside a data set of {len(self)} samples")
        return int(index) % len(self)


def _multiples(patch: Sequence[int] | None) -> list[int]:
    """Return the largest power of two that divides each size of a patch."""
    return [DEFAULT_MULTIPLE] * 3 if patch is None else [size & -size for size in patch]


def _check_channels(volumes: Sequence[PreparedVolume], path: str) -> None:
    found = sorted({prepared.shape[0] for prepared in volumes})
    if len(found) > 1:
        raise DataError(
            f"{path}: volumes have {' and '.join(map(str, found[:4]))} channels",
            fix="give all of them the same channels",
        )


def _check_arguments(foreground_share: float, patches_per_volume: int, max_voxels: int) -> None:
    problems = []
    if not 0 <= foreground_share <= 1:
        problems.append(f"foreground_share={foreground_share!r} is not in 0..1")
    if patches_per_volume < 1:
        problems.append(f"patches_per_volume={patches_per_volume!r} is not >= 1")
    if max_voxels < 1:
        problems.append(f"max_voxels={max_voxels!r} is not >= 1")
    if problems:
        raise ConfigError("; ".join(problems), fix="correct the arguments of VolumeDataset")


def _check_ignored(transform: VolumeTransform, patches_per_volume: int) -> None:
    if transform.patch is not None:
        return
    ignored = [name for name, amount in transform.amounts.items() if amount > 0]
    if transform.flip_axes:
        ignored.insert(0, "flip")
    if patches_per_volume > 1:
        ignored.append(f"patches_per_volume={patches_per_volume}")
    if ignored:
        raise ConfigError(
            f"transform={transform.text!r} has no patch, and whole volumes are not changed:"
            f" {', '.join(ignored)} would be ignored",
            fix="add patch_DxHxW, which may be as large as the volumes, or leave them out",
        )
