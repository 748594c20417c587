"""Lung nodules as cubes of CT: voxels, a mask of each nodule, and what radiologists say of it.

The data: LIDC-IDRI, Armato et al. 2011, doi 10.1118/1.3528204; scores of 1 to 5.

Shapes: N cubes of D x H x W voxels.
"""

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deepseek.datasets.numpy_volume import read_arrays
from deepseek.datasets.randomness import permutation
from deepseek.datasets.volume_file import DEFAULT_MAX_VOXELS
from deepseek.errors import ConfigError, DataError
from deepseek.models.center_detector import SCORE_RANGE

SCORES = (
    "malignancy", "texture", "spiculation", "lobulation", "sphericity", "margin", "subtlety",
)  # fmt: skip
NUM_FOLDS = 5
_FOLD_SEED = 20110
"""Of the folds alone: another seed of a run must not move patients."""
_MAX_CUBES = 100_000
WINDOW_HU = (-1200.0, 400.0)
"""Of cubes that do not say theirs. A cube of LIDC-IDRI-0001 laid over its scan (correlation 0.996)
has -1187 to 375, its edges softened by resampling."""


@dataclass(frozen=True, eq=False)
class NoduleCubes:
    """Cubes with one nodule each.

    Attributes:
        voxels: float32 (N, D, H, W), a window of HU as 0..1.
        masks: uint8 (N, D, H, W), 1 in the nodule.
        names: of each cube, `PATIENT_...`.
        scores: of radiologists by name, float64 (N,), 1 to 5; NaN where one is missing.
        spacing_mm: between voxels, along every axis.
        window_hu: the HU that are 0 and 1.
        negatives: uint8 (M, D, H, W), cubes without any nodule, the window as 0..255.
        negative_names: of these, `PATIENT_...`.
    """

    voxels: np.ndarray
    masks: np.ndarray
    names: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    spacing_mm: float = 1.0
    window_hu: tuple[float, float] = WINDOW_HU
    negatives: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0, 0), np.uint8))
    negative_names: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        *,
        cube_voxels: int = 51,
        negatives_per_scan: int = 2,
        cache: str | os.PathLike = "auto",
        max_voxels: int = DEFAULT_MAX_VOXELS,
    ) -> "NoduleCubes":
        """Return the cubes of a `.npz` or the one in a folder, or cut them from a folder of scans.

        Args as in `from_scans`; `max_voxels` alone counts where cubes are read.
        """
        if not holds_scans(path):
            return read_nodule_cubes(path, max_voxels)
        return cls.from_scans(
            path, cube_voxels=cube_voxels, negatives_per_scan=negatives_per_scan, cache=cache,
            max_voxels=max_voxels,
        )  # fmt: skip

    @classmethod
    def from_scans(
        cls,
        folder: str | os.PathLike,
        *,
        cube_voxels: int = 51,
        negatives_per_scan: int = 2,
        window_hu: tuple[float, float] = WINDOW_HU,
        cache: str | os.PathLike = "auto",
        max_voxels: int = DEFAULT_MAX_VOXELS,
    ) -> "NoduleCubes":
        """Return cubes cut from whole scans: LUNA16, or DICOM or NIfTI with `annotations.csv`.

        Args:
            folder: of the scans.
            cube_voxels: along each side, at 1 mm.
            negatives_per_scan: cubes without a nodule: of `candidates_v2.csv` where `class` is 0;
                without that file at random places of the lungs, where no finding reaches in.
            window_hu: the HU that become 0 and 1.
            cache: where cubes are kept: "auto", a folder of the user's cache; "off"; or a folder.
            max_voxels: of a scan, and of all cubes.

        Raises:
            DataError: a scan cannot be read, or there are no findings.
            ConfigError: a setting is out of its range.
        """
        # the cutting of scans is built on these cubes
        from deepseek.medical.nodule_cutting import CubeSettings, cut_cubes

        settings = CubeSettings(cube_voxels, negatives_per_scan, window_hu)
        return cut_cubes(folder, settings, cache=cache, max_voxels=max_voxels)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def patients(self) -> np.ndarray:
        """The patient of each cube: its name up to the first `_`."""
        return _patients_of(self.names)

    @property
    def diameters_mm(self) -> np.ndarray:
        """Diameter of a ball of the nodule's volume, (N,)."""
        counts = self.masks.sum((1, 2, 3), dtype=np.int64)
        return ball_diameter(counts * self.spacing_mm**3)

    def folds(self, num_folds: int = NUM_FOLDS) -> np.ndarray:
        """Return the fold of each cube, 0..num_folds-1; all cubes of a patient are in one.

        Raises:
            ConfigError: there are fewer patients than folds, or less than two folds.
        """
        return self._folds_of(self.names, num_folds)

    def negative_folds(self, num_folds: int = NUM_FOLDS) -> np.ndarray:
        """Return the fold of each negative cube, likewise."""
        return self._folds_of(self.negative_names, num_folds)

    def _folds_of(self, names: Sequence[str], num_folds: int) -> np.ndarray:
        patients = np.unique(_patients_of([*self.names, *self.negative_names]))
        if not 2 <= num_folds <= len(patients):
            raise ConfigError(
                f"num_folds={num_folds} of {len(patients)} patients",
                fix=f"set num_folds to 2..{len(patients)}",
            )
        places = np.empty(len(patients), np.int64)
        places[permutation(len(patients), _FOLD_SEED)] = np.arange(len(patients)) % num_folds
        return places[np.searchsorted(patients, _patients_of(names))]


def _patients_of(names: Sequence[str]) -> np.ndarray:
    return np.array([name.partition("_")[0] for name in names], dtype=str)


def ball_diameter(volumes_mm3: np.ndarray) -> np.ndarray:
    """Return the diameter in mm of balls of these volumes."""
    return np.cbrt(6 * np.asarray(volumes_mm3, np.float64) / np.pi)


def read_nodule_cubes(path: str | os.PathLike, max_voxels: int = DEFAULT_MAX_VOXELS) -> NoduleCubes:
    """Read a `.npz`, or the one in a folder.

    It holds `image` (N, D, H, W), uint8 or floats in 0..1, at 1 mm; `mask`, likewise; `name` (N,),
    `PATIENT_...`; and may hold `malignancy`, `texture`, ... (N,), 0 where a score is missing, and
    `window_hu` (2,), the HU that are 0 and 1, `negative` (M, D, H, W), uint8, cubes without a
    nodule, and `negative_name` (M,).

    Raises:
        DataError: there is no such file, it is damaged, or its arrays do not fit.
    """
    file = _find(Path(path).expanduser())
    limits = {"image": max_voxels, "mask": max_voxels, "name": _MAX_CUBES, "window_hu": 2}
    limits |= {"negative": max_voxels, "negative_name": _MAX_CUBES}
    limits.update(dict.fromkeys(SCORES, _MAX_CUBES))
    arrays = read_arrays(file, limits, needed=("image", "mask", "name"), kinds="iufbU")
    image, mask, names = arrays["image"], arrays["mask"], arrays["name"]
    _check_arrays(file, image, mask, names)
    scores = {
        name: _read_scores(file, name, arrays[name], names) for name in SCORES if name in arrays
    }
    voxels = image.astype(np.float32)
    if image.dtype == np.uint8:
        voxels /= 255
    window = _check_window(file, arrays.get("window_hu", np.array(WINDOW_HU)))
    negatives = arrays.get("negative", np.empty((0, *image.shape[1:]), np.uint8))
    negative_names = arrays.get("negative_name", np.empty(0, str))
    _check_negatives(file, image, negatives, negative_names)
    return NoduleCubes(
        voxels, mask.astype(np.uint8), tuple(map(str, names)), scores, window_hu=window,
        negatives=negatives, negative_names=tuple(map(str, negative_names)),
    )  # fmt: skip


def _read_scores(file: Path, name: str, given: np.ndarray, cubes: np.ndarray) -> np.ndarray:
    """Return the scores of cubes, 1 to 5; NaN where one is missing."""
    if given.shape != cubes.shape or given.dtype.kind not in "iuf":
        raise DataError(
            f"{file}: {name} has the shape {given.shape}, not {cubes.shape}",
            fix="give a number for each cube, 0 where it is not known",
        )
    known = given[given > 0]
    low, high = SCORE_RANGE
    if not ((known >= low) & (known <= high)).all():
        raise DataError(
            f"{file}: {name} is {known.min():g} to {known.max():g}, not {low:g} to {high:g}",
            fix="give scores as radiologists of LIDC-IDRI do, 0 where one is not known",
        )
    return np.where(given > 0, given, np.nan).astype(np.float64)


def _check_negatives(file: Path, image: np.ndarray, cubes: np.ndarray, names: np.ndarray) -> None:
    is_like = cubes.dtype == np.uint8 and cubes.shape[1:] == image.shape[1:]
    if not is_like or names.shape != cubes.shape[:1] or names.dtype.kind != "U":
        raise DataError(
            f"{file}: negative {cubes.dtype} {cubes.shape} and negative_name {names.shape} do not"
            f" fit image {image.shape}",
            fix="give uint8 cubes of the same size, and a name for each",
        )


def _check_window(file: Path, window: np.ndarray) -> tuple[float, float]:
    if window.shape != (2,) or not np.isfinite(window).all() or not window[0] < window[1]:
        raise DataError(
            f"{file}: window_hu={window.tolist()} is no least and greatest HU",
            fix="give the HU that are 0 and 1 in image",
        )
    return float(window[0]), float(window[1])


def holds_nodule_cubes(path: str | os.PathLike) -> bool:
    """Return whether a path is that of cubes, rather than of volumes: a `.npz` with `image`."""
    root = Path(path).expanduser()
    files = sorted(root.glob("*.npz")) if root.is_dir() else [root]
    if len(files) != 1 or not zipfile.is_zipfile(files[0]):
        return False
    with zipfile.ZipFile(files[0]) as archive:
        return "image.npy" in archive.namelist()


def holds_scans(path: str | os.PathLike) -> bool:
    """Return whether a path is a folder of whole scans, rather than of one `.npz` of cubes."""
    root = Path(path).expanduser()
    return root.is_dir() and any(root.iterdir()) and not any(root.glob("*.npz"))


def _find(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path} does not exist", fix="correct the path")
        return path
    found = sorted(path.glob("*.npz"))
    if len(found) != 1:
        raise DataError(f"{path} holds {len(found)} .npz files, not one", fix="name the file")
    return found[0]


def _check_arrays(file: Path, image: np.ndarray, mask: np.ndarray, names: np.ndarray) -> None:
    if image.ndim != 4 or mask.shape != image.shape or names.shape != image.shape[:1]:
        raise DataError(
            f"{file}: image {image.shape}, mask {mask.shape} and name {names.shape} do not fit",
            fix="give image and mask (N, D, H, W), and name (N,)",
        )
    if "U" in (image.dtype.kind, mask.dtype.kind) or names.dtype.kind != "U":
        raise DataError(
            f"{file}: image is {image.dtype}, mask {mask.dtype}, name {names.dtype}",
            fix="give numbers, numbers and text",
        )
    if image.dtype != np.uint8 and not (image.min() >= 0 and image.max() <= 1):
        raise DataError(
            f"{file}: image is {image.dtype}, {image.min():g} to {image.max():g}",
            fix="give uint8, or floats in 0..1",
        )
    if not mask.reshape(len(mask), -1).any(1).all():
        raise DataError(f"{file}: a mask is empty", fix="give a nodule in every cube")
    if mask.max() > 1 or mask.min() < 0:
        raise DataError(f"{file}: mask goes up to {mask.max()}", fix="give 0 and 1")
