"""Crops of nodule cubes, to find nodules (a centre and a diameter) or to outline them (a mask).

A crop never shows a nodule in its middle on purpose: it begins anywhere in the cube. A negative
crop holds no voxel of the nodule, and its middle is more than 12 mm from the nodule's; where it
reaches beyond the cube, the cube is mirrored. What is random in a sample is a function of (seed,
epoch, index), whoever computes it; in evaluation of the index alone.

Shapes: B batch, P Q R voxels of a crop.
"""

import copy
import math
import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from deepseek.datasets.patch_sampling import augmented_patch
from deepseek.datasets.randomness import Draws, current_epoch
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.volume_file import DEFAULT_MAX_VOXELS
from deepseek.datasets.volume_transforms import VolumeTransform, parse_volume_transform
from deepseek.errors import ConfigError, DataError
from deepseek.medical.nodule_cubes import NUM_FOLDS, SCORES, NoduleCubes, ball_diameter
from deepseek.registry import did_you_mean

SCORE = "score."
"""Begins the field of a score."""
DEFAULT_TRANSFORM = "patch_40x40x40+flip+rotate_20+scale_0.2+brightness_0.1+gamma_0.2+noise_0.05"
NEGATIVE_DISTANCE_MM = 12.0
BEYOND_VOXELS = 6
"""How far a crop to learn detection from reaches beyond the cube: nodules lie at the rim too."""
RIM_VOXELS = 6
"""Between the middle of a nodule and the faces of a crop that is to show it, at the least."""
_TURN_VOXELS = 10
"""Voxels around a crop that turning and zooming may take in."""
_SLACK_VOXELS = 4
_EVALUATION_SEED = 3
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


class NoduleDataset(torch.utils.data.Dataset):
    """Crops of nodule cubes.

    Args:
        path: a `.npz` file as `read_nodule_cubes` takes it, its folder, a folder of scans as
            `NoduleCubes.from_scans` takes it, or cubes.
        transform: in the string language of volumes, without spacing and orientation; it has a
            patch. With `flip`, axes of a cubic patch change places as well: all 48 positions.
        targets: "centers": where the nodule is and how large, or that there is none; "masks": a
            class for every voxel.
        negative_share: of the crops to learn from that hold no nodule, 0..1; every second of them
            is of a negative cube, where there are any. A model that has never seen one finds
            nodules wherever it looks.
        crops_per_cube: samples of each cube in an epoch.
        scores: of radiologists, names of `SCORES`, to be learnt beside centres.
        seed: of crops and augmentation.
        max_voxels: of all cubes together; a file that declares more is refused unread.

    Raises:
        DataError: the cubes cannot be used.
        ConfigError: an argument is out of its range.
    """

    lengths = None
    is_light = False

    def __init__(
        self,
        path: str | os.PathLike | NoduleCubes,
        transform: str = DEFAULT_TRANSFORM,
        *,
        targets: Literal["centers", "masks"] = "centers",
        negative_share: float = 0.25,
        crops_per_cube: int = 1,
        scores: Sequence[str] = (),
        seed: int = 0,
        max_voxels: int = DEFAULT_MAX_VOXELS,
    ) -> None:
        self._transform = _check_arguments(transform, targets, negative_share, crops_per_cube)
        is_open = isinstance(path, NoduleCubes)
        self.cubes = path if is_open else NoduleCubes.open(path, max_voxels=max_voxels)
        self._patch: tuple[int, int, int] = self._transform.patch or (1, 1, 1)
        sizes = self.cubes.voxels.shape[1:]
        if any(size < extent for size, extent in zip(sizes, self._patch, strict=True)):
            raise ConfigError(
                f"patch_{'x'.join(map(str, self._patch))} of cubes of {sizes} voxels",
                fix="write a smaller patch in transform",
            )
        _check_scores(scores, self.cubes, targets)
        self.targets = targets
        self.scores = tuple(scores)
        self.negative_share = negative_share
        self.crops_per_cube = crops_per_cube
        self.seed = seed
        self._rows = np.arange(len(self.cubes))
        self._negatives = np.arange(len(self.cubes.negatives))
        self._evaluates = False
        self.class_names = ("nodule",) if targets == "centers" else ("background", "nodule")

    # -- what the set holds ------------------------------------------------------------------

    def __len__(self) -> int:
        if not self._evaluates:
            return len(self._rows) * self.crops_per_cube
        if self.targets == "masks":
            return len(self._rows)
        return 2 * len(self._rows) + len(self._negatives)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self._patch))
        return f"NoduleDataset({len(self._rows)} cubes, {self.targets}, crops of {shape} voxels)"

    @property
    def transform(self) -> str:
        """The transform, as text."""
        return self._transform.text

    @property
    def rows(self) -> np.ndarray:
        """Numbers of the cubes of this set among all, int64."""
        return self._rows

    @property
    def spec(self) -> DataSpec:
        """What a sample holds."""
        is_centers = self.targets == "centers"
        counts = (len(self._rows),)
        if not is_centers:
            masks = self.cubes.masks[self._rows]
            inside = int(masks.sum(dtype=np.int64))
            counts = (masks.size - inside, inside)
        return DataSpec(
            task="detection" if is_centers else "segmentation",
            fields={
                "inputs": FieldSpec((1, *self._patch), "float32"),
                "targets": FieldSpec((1, 4), "float32")
                if is_centers
                else FieldSpec(self._patch, "int64"),
                **{f"{SCORE}{name}": FieldSpec((), "float32") for name in self.scores},
            },
            class_names=self.class_names,
            class_counts=counts,
            transform=self._scan_transform,
        )

    @property
    def _scan_transform(self) -> str:
        """What makes a scan like the cubes."""
        spacing = "x".join([f"{self.cubes.spacing_mm:g}"] * 3)
        low, high = self.cubes.window_hu
        return f"spacing_{spacing}+window_{low:g}_{high:g}"

    def describe(self, index: int) -> str:
        """Return the name of a sample's cube, for messages."""
        position = self._check_index(index)
        if self._evaluates and position >= 2 * len(self._rows):
            return self.cubes.negative_names[self._negatives[position - 2 * len(self._rows)]]
        return self.cubes.names[self._place(position)[0]]

    # -- samples -----------------------------------------------------------------------------

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch, _ = self.get_batch([self._check_index(index)], current_epoch())
        return {name: value[0] for name, value in batch.items() if name != "index"}

    def get_batch(
        self, indices: Sequence[int], epoch: int
    ) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
        """Return a batch; no sample is ever bad, as the cubes are in memory.

        `inputs` (B, 1, P, Q, R) float32; `index` (B,); `targets` int64 (B, P, Q, R), or for
        "centers" float32 (B, 1, 4): d, h, w of the nodule's centre in voxels of the crop and its
        diameter in mm, -1 where there is none; for these also `box` int64 (B, 3, 2): first voxel
        of the crop, and the one after the last, that are not mirrored, along each axis; and
        `score.NAME` float32 (B,), NaN where a score is not known.
        """
        positions = [self._check_index(index) for index in indices]
        samples = [self._sample(position, epoch) for position in positions]
        batch = {
            name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
            for name in samples[0]
        }
        batch["index"] = torch.tensor(positions, dtype=torch.int64)
        return batch, []

    def _sample(self, position: int, epoch: int) -> dict[str, np.ndarray]:
        if self._evaluates and position >= 2 * len(self._rows):
            number = int(self._negatives[position - 2 * len(self._rows)])
            return self._negative_sample(number, Draws(_EVALUATION_SEED, number, 2))
        row, number = self._place(position)
        is_centers = self.targets == "centers"
        if self._evaluates:
            draws, is_negative = Draws(_EVALUATION_SEED, row, number), number == 1
        else:
            draws = Draws(self.seed, epoch, row, number)
            is_negative = draws.chance(self.negative_share)
            if is_negative and len(self._negatives) and draws.chance(0.5):
                at = draws.integer(0, len(self._negatives) - 1)
                return self._negative_sample(int(self._negatives[at]), draws)
        mask = self.cubes.masks[row]
        region = [(0, size) for size in mask.shape]
        reach = BEYOND_VOXELS if is_centers and not self._evaluates else 0
        start = around_nodule(mask, self._patch, reach, draws)
        if is_negative:
            axis, region[axis], start[axis] = beside_nodule(
                mask, self._patch, self.cubes.spacing_mm, draws
            )
        voxels, labels = self._crop(
            self.cubes.voxels[row], self.cubes.masks[row], start, region, draws
        )
        if not is_centers:
            return {"inputs": voxels, "targets": labels}
        box = [
            (max(low - at, 0), min(high - at, extent))
            for (low, high), at, extent in zip(region, start, self._patch, strict=True)
        ]
        return {
            "inputs": voxels,
            "targets": self._centers(labels, int(mask.sum())),
            "box": np.array(box, np.int64),
            **self._scores_of(row),
        }

    def _scores_of(self, row: int | None) -> dict[str, np.ndarray]:
        """Return the scores of a cube; NaN of one without a nodule."""
        return {
            f"{SCORE}{name}": np.array(
                np.nan if row is None else self.cubes.scores[name][row], np.float32
            )
            for name in self.scores
        }

    def _negative_sample(self, number: int, draws: Draws) -> dict[str, np.ndarray]:
        """Return a crop of a cube without a nodule, around its middle in evaluation."""
        cube = self.cubes.negatives[number].astype(np.float32) / 255
        spare = [size - extent for size, extent in zip(cube.shape, self._patch, strict=True)]
        start = [n // 2 if self._evaluates else draws.integer(0, n) for n in spare]
        region = [(0, size) for size in cube.shape]
        nothing = np.zeros(cube.shape, np.uint8)
        voxels, labels = self._crop(cube, nothing, start, region, draws)
        if self.targets == "masks":
            return {"inputs": voxels, "targets": labels}
        return {
            "inputs": voxels,
            "targets": np.full((1, 4), -1, np.float32),
            "box": np.array([(0, extent) for extent in self._patch], np.int64),
            **self._scores_of(None),
        }

    def _crop(
        self, cube: np.ndarray, mask: np.ndarray, start: Sequence[int],
        region: Sequence[tuple[int, int]], draws: Draws,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Return a crop of what lies in the region, mirrored beyond it, and its labels."""
        margin = 0 if self._evaluates else _TURN_VOXELS
        rows = [
            np.arange(at - margin, at + extent + margin)
            for at, extent in zip(start, self._patch, strict=True)
        ]
        places = np.ix_(*(
            low + mirrored(row - low, high - low)
            for row, (low, high) in zip(rows, region, strict=True)
        ))  # fmt: skip
        voxels, labels = cube[places][None], mask[places]
        if self.targets == "centers":  # a nodule is there once, however a crop is turned
            shown = labels > 0
            for axis, (row, (low, high)) in enumerate(zip(rows, region, strict=True)):
                labels.swapaxes(0, axis)[(row < low) | (row >= high)] = 0
            voxels[0][shown & (labels == 0)] = voxels.min()
        if self._evaluates:
            return voxels, labels.astype(np.int64)
        voxels, labels = augmented_patch(
            voxels, labels, [margin] * 3, self._patch, self._transform,
            [self.cubes.spacing_mm] * 3, draws,
        )  # fmt: skip
        if len(self._transform.flip_axes) == 3 and len(set(self._patch)) == 1:
            order = _ORDERS[draws.integer(0, 5)]
            voxels = np.ascontiguousarray(voxels.transpose(0, *(axis + 1 for axis in order)))
            labels = np.ascontiguousarray(labels.transpose(order))
        return voxels, labels

    def _centers(self, labels: np.ndarray, num_voxels: int) -> np.ndarray:
        """Return the centre and the diameter of the nodule; -1 where less than half is there."""
        inside = np.argwhere(labels == 1)
        if 2 * len(inside) < num_voxels:
            return np.full((1, 4), -1, np.float32)
        diameter = ball_diameter(np.array(len(inside) * self.cubes.spacing_mm**3))
        return np.array([[*inside.mean(0), diameter]], np.float32)

    # -- views -------------------------------------------------------------------------------

    def evaluation_view(self) -> "NoduleDataset":
        """Return the same cubes in crops that are always the same and not augmented.

        One crop a cube; for "centers" a second, negative one, and one of each negative cube.
        """
        view = copy.copy(self)
        view._evaluates = True
        return view

    def split_fold(
        self, fold: int, num_folds: int = NUM_FOLDS
    ) -> tuple["NoduleDataset", "NoduleDataset"]:
        """Return (training, validation) parts by patient, the second as its `evaluation_view`.

        Args:
            fold: which part is validated on, 0..num_folds-1.
            num_folds: parts.

        Raises:
            ConfigError: there is no such fold.
        """
        folds = self.cubes.folds(num_folds)
        if not 0 <= fold < num_folds:
            raise ConfigError(f"fold={fold} is not in 0..{num_folds - 1}", fix="correct the fold")
        negative_folds = self.cubes.negative_folds(num_folds)
        return (
            self._part(folds != fold, negative_folds != fold),
            self._part(folds == fold, negative_folds == fold).evaluation_view(),
        )

    def _part(self, is_in: np.ndarray, has_negative: np.ndarray) -> "NoduleDataset":
        view = copy.copy(self)
        view._rows, view._negatives = np.flatnonzero(is_in), np.flatnonzero(has_negative)
        return view

    # -- inside ------------------------------------------------------------------------------

    def _place(self, position: int) -> tuple[int, int]:
        """Return the cube of a sample, and which sample of it this is."""
        if self._evaluates:
            number, place = divmod(position, len(self._rows))
        else:
            place, number = divmod(position, self.crops_per_cube)
        return int(self._rows[place]), number

    def _check_index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            # IndexError, not ours: Python's iteration over a sequence ends by it.
            raise IndexError(f"index={index} is outside a data set of {len(self)} samples")
        return int(index) % len(self)


def around_nodule(mask: np.ndarray, patch: Sequence[int], reach: int, draws: Draws) -> list[int]:
    """Return the first voxel of a crop that shows the nodule, anywhere in it.

    Args:
        mask: of the nodule, (D, H, W).
        patch: size of the crop.
        reach: voxels by which it may lie beyond the cube, where it is mirrored; fewer at a face
            near the nodule, which would be shown twice.
        draws: randomness.
    """
    inside = np.argwhere(mask)
    rooms = np.stack([inside.min(0), np.array(mask.shape) - 1 - inside.max(0)], 1).tolist()
    start = []
    for at, size, extent, room in zip(inside.mean(0), mask.shape, patch, rooms, strict=True):
        before, after = (min(reach, max(distance - 1, 0)) for distance in room)
        rim = min(RIM_VOXELS, extent // 4)
        low = max(-before, math.ceil(at) - extent + rim)
        high = min(size - extent + after, math.floor(at) - rim)
        start.append(draws.integer(min(low, size - extent), max(high, 0)))
    return start


def beside_nodule(
    mask: np.ndarray, patch: Sequence[int], spacing_mm: float, draws: Draws
) -> tuple[int, tuple[int, int], int]:
    """Return where a crop without any of the nodule lies: an axis, the region of it, a start.

    Args:
        mask: of the nodule, (D, H, W).
        patch: size of the crop.
        spacing_mm: between voxels.
        draws: randomness.
    """
    inside = np.argwhere(mask)
    ends = inside.max(0) + 1
    before = [(axis, (0, int(low))) for axis, low in enumerate(inside.min(0))]
    after = [
        (axis, (int(high), size))
        for axis, (high, size) in enumerate(zip(ends, mask.shape, strict=True))
    ]
    sides = sorted([*before, *after], key=lambda side: side[1][0] - side[1][1])
    # of the two widest sides either: where a nodule touches a face nothing is left of it
    axis, (low, high) = sides[draws.integer(0, 1)]
    middle, half = float(inside[:, axis].mean()), (patch[axis] - 1) / 2
    away = NEGATIVE_DISTANCE_MM / spacing_mm
    slack = draws.integer(0, _SLACK_VOXELS)
    if low == 0:
        return axis, (low, high), min(high - patch[axis], math.floor(middle - away - half)) - slack
    return axis, (low, high), max(low, math.ceil(middle + away - half)) + slack


def mirrored(places: np.ndarray, size: int) -> np.ndarray:
    """Return indices as of a row that is mirrored at both ends, in 0..size-1."""
    if size == 1:
        return np.zeros_like(places)
    around = np.mod(places, 2 * (size - 1))
    return np.minimum(around, 2 * (size - 1) - around)


def _check_scores(scores: Sequence[str], cubes: NoduleCubes, targets: str) -> None:
    if scores and targets != "centers":
        raise ConfigError(
            f"scores={list(scores)} would be ignored with targets={targets!r}",
            fix="learn them with targets='centers', or leave them out",
        )
    for name in scores:
        if name not in SCORES:
            raise ConfigError(f"score {name!r} is unknown", fix=did_you_mean(name, SCORES))
        if name not in cubes.scores:
            raise DataError(f"the cubes have no {name}", fix="leave it out of scores")


def _check_arguments(
    transform: str, targets: str, negative_share: float, crops_per_cube: int
) -> VolumeTransform:
    problems = []
    parsed = parse_volume_transform(transform)
    if parsed.patch is None:
        problems.append(f"transform={transform!r} has no patch")
    if (
        parsed.spacing_mm is not None
        or parsed.window is not None
        or parsed.is_zscored
        or "orient" in transform
    ):
        problems.append(f"transform={transform!r} prepares volumes, and cubes are prepared")
    if targets == "centers" and (1 + parsed.amounts["scale"]) ** 3 >= 2:
        problems.append(
            f"transform={transform!r} shrinks a nodule to less than half of its voxels, which count"
            " as no nodule: scale must be below 0.26 for centers"
        )
    if targets not in ("centers", "masks"):
        problems.append(f"targets={targets!r} is neither 'centers' nor 'masks'")
    if not 0 <= negative_share <= 1:
        problems.append(f"negative_share={negative_share!r} is not in 0..1")
    if crops_per_cube < 1:
        problems.append(f"crops_per_cube={crops_per_cube!r} is not >= 1")
    if problems:
        raise ConfigError("; ".join(problems), fix="correct the arguments of NoduleDataset")
    return parsed
