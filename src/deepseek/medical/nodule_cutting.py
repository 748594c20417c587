"""Cubes of nodules cut from whole scans, once: what a detector is trained on, from LUNA16 or DICOM.

Around each finding a cube is resampled; its mask is what is labelled near the finding, else a ball
of its diameter. Cubes of candidates that are no findings (`class` 0 of `candidates_v2.csv`) show no
nodule; without such a file, cubes at random places of the lungs do. A cube that another finding
reaches into is left out: it could not say which of them is meant. Setio et al. 2017, arXiv
1612.08012, for the files.
"""

import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from deepseek.datasets.cache_folder import cache_folder
from deepseek.datasets.kept_folder import SlowReport, make_beside, taking_place
from deepseek.datasets.randomness import Draws, permutation
from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import DEFAULT_MAX_VOXELS, read_volume
from deepseek.datasets.volume_store import facts_of_files, laid_on, read_labels
from deepseek.errors import ConfigError, DataError
from deepseek.medical.froc import UNKNOWN_DIAMETER_MM, Findings, Marks
from deepseek.medical.luna16 import read_marks
from deepseek.medical.nodule_crops import CUBE_VOXELS, SPACING_MM, cube_at, mask_of, shades_of
from deepseek.medical.nodule_cubes import WINDOW_HU, NoduleCubes, read_nodule_cubes
from deepseek.medical.regions import find_lungs
from deepseek.medical.scan_findings import findings_of_labels
from deepseek.medical.scans import ANNOTATIONS, Scan, find_scans, listed_name, patients_of

NEGATIVES_PER_SCAN = 2
CANDIDATES = ("candidates_v2.csv", "candidates.csv")
FILE_NAME = "cubes.npz"
_FORMAT_VERSION = 4
_TRIES = 20
"""Places of a scan that are looked at for each negative cube."""


@dataclass(frozen=True)
class CubeSettings:
    """How cubes are cut.

    Attributes:
        cube_voxels: along each side, at 1 mm.
        negatives_per_scan: cubes of candidates that are no findings, or of lung.
        window_hu: the HU that become 0 and 1.
    """

    cube_voxels: int = CUBE_VOXELS
    negatives_per_scan: int = NEGATIVES_PER_SCAN
    window_hu: tuple[float, float] = WINDOW_HU


def cut_cubes(
    folder: str | os.PathLike,
    settings: CubeSettings = CubeSettings(),
    *,
    cache: str | os.PathLike = "auto",
    max_voxels: int = DEFAULT_MAX_VOXELS,
) -> NoduleCubes:
    """Return the cubes of the scans in a folder; those that were cut before, if nothing changed.

    Args:
        folder: what `find_scans` takes, with `annotations.csv`, or with labels.
        settings: how they are cut.
        cache: where they are kept: "auto", a folder of the user's cache; "off"; or a folder.
        max_voxels: of a scan, and of all cubes.

    Raises:
        DataError: a scan cannot be read, there are no findings, or some lie outside their scan.
        ConfigError: a setting is out of its range.
    """
    _check_settings(settings)
    root = Path(folder).expanduser()
    scans = known_scans(root)
    candidates = next((root / name for name in CANDIDATES if (root / name).is_file()), None)
    kept = cache_folder(cache, "nodules")
    place = None if kept is None else kept / _key(root, scans, candidates, settings)
    if place is not None and (place / FILE_NAME).is_file():
        return read_nodule_cubes(place / FILE_NAME, max_voxels)
    if kept is None or place is None:
        return _in_memory(_cut_all(root, scans, candidates, settings, max_voxels))
    try:
        temporary = make_beside(kept)
    except OSError as error:
        warnings.warn(f"cubes are kept in memory: {kept} cannot be written: {error}", stacklevel=3)
        return _in_memory(_cut_all(root, scans, candidates, settings, max_voxels))
    with taking_place(temporary, place, FILE_NAME):
        arrays = _cut_all(root, scans, candidates, settings, max_voxels)
        np.savez(temporary / FILE_NAME, **arrays)  # type: ignore[arg-type]
    return read_nodule_cubes(place / FILE_NAME, max_voxels)


def known_scans(root: Path) -> list[Scan]:
    """Return the scans in a folder, of some of which it is known where nodules are.

    Raises:
        DataError: there are none, or nobody says where.
    """
    scans = find_scans([root])
    if not any(map(_is_known, scans)):
        raise DataError(
            f"{root} has neither {ANNOTATIONS[0]} nor labels: nobody says where nodules are",
            fix="put annotations.csv of LUNA16 beside the scans",
        )
    return scans


def _in_memory(arrays: dict[str, np.ndarray]) -> NoduleCubes:
    low, high = arrays["window_hu"].tolist()
    return NoduleCubes(
        arrays["image"].astype(np.float32) / 255, arrays["mask"],
        tuple(arrays["name"].tolist()), {}, window_hu=(low, high),
        negatives=arrays.get("negative", arrays["image"][:0]),
        negative_names=tuple(arrays["negative_name"].tolist()) if "negative_name" in arrays else (),
    )  # fmt: skip


def _check_settings(settings: CubeSettings) -> None:
    low, high = settings.window_hu
    if settings.cube_voxels < 8 or settings.negatives_per_scan < 0 or not low < high:
        raise ConfigError(
            f"cube_voxels={settings.cube_voxels} is below 8, negatives_per_scan="
            f"{settings.negatives_per_scan} below 0, or window_hu={settings.window_hu} no interval",
            fix="correct the setting",
        )


def _key(root: Path, scans: Sequence[Scan], candidates: Path | None, settings: CubeSettings) -> str:
    tables = [root / name for name in ANNOTATIONS]
    paths = [scan.image for scan in scans]
    paths += [scan.labels for scan in scans if scan.labels is not None]
    paths += [path for path in (*tables, candidates) if path is not None and path.is_file()]
    words = [_FORMAT_VERSION, repr(settings), *(facts_of_files(path) for path in paths)]
    return xxhash.xxh3_128_hexdigest(json.dumps(words).encode())


def _cut_all(
    root: Path, scans: Sequence[Scan], candidates: Path | None, settings: CubeSettings,
    max_voxels: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the arrays that `read_nodule_cubes` takes."""
    is_random, listed = candidates is None, _candidates_of(scans, candidates)
    cubes, names, others, num_shared, num_short = [], [], [], 0, 0
    report = SlowReport("cutting cubes of nodules", "cut cubes of nodules", "scans")
    for number, (scan, first) in enumerate(zip(scans, patients_of(scans, root), strict=True)):
        report.note(number)
        is_healthy = scan.findings is not None and not len(scan.findings.centers_mm)
        marks = listed[number]
        may_have = _is_known(scan) if is_random else marks is not None
        has_negatives = settings.negatives_per_scan > 0 and may_have
        if is_healthy and not has_negatives:
            continue
        cutter = _Cutter(*_read(scan, max_voxels), settings)
        # what is before the first _ divides the folds
        patient, name = (text.replace("_", "-") for text in (first, scan.name))
        of_patient = patient if name == patient else f"{patient}_{name}"
        found = cutter.positives()
        num_shared += sum(cube is None for cube in found)
        cubes += [cube for cube in found if cube is not None]
        names += [f"{of_patient}_{at}" for at, cube in enumerate(found) if cube is not None]
        if has_negatives:
            places = cutter.lung_places(number) if marks is None else _shuffled(marks, number)
            negatives = cutter.negatives(places)
            num_short += is_random and len(negatives) < settings.negatives_per_scan
            others += [(of_patient, shades) for shades in negatives]
    report.end(len(scans))
    if num_short:
        sys.stderr.write(
            f"{num_short} scans give fewer negative cubes than {settings.negatives_per_scan}: no"
            " lungs are found there, or findings reach into all that were tried\n"
        )
    if num_shared:
        sys.stderr.write(f"{num_shared} findings are left out: others reach into their cubes\n")
    if not cubes:
        raise DataError(
            f"no cube with one finding alone in {len(scans)} scans",
            fix="give scans with findings, or smaller cubes",
        )
    arrays = {
        "image": np.stack([shades for shades, _ in cubes]),
        "mask": np.stack([mask for _, mask in cubes]),
        "name": np.array(names),
        "window_hu": np.array(settings.window_hu),
    }
    if others:
        arrays["negative"] = np.stack([shades for _, shades in others])
        arrays["negative_name"] = np.array([f"{who}_no" for who, _ in others])
    return arrays


def _read(scan: Scan, max_voxels: int) -> tuple[Volume, Volume | None, Findings]:
    """Return a scan and its labels, slices from the feet up, and its findings."""
    volume = read_volume(scan.image, max_voxels=max_voxels)
    if len(volume.voxels) != 1:
        raise DataError(f"{scan.image} has {len(volume.voxels)} channels", fix="give a CT")
    labels = None
    if scan.labels is not None:
        labels = laid_on(volume, read_labels(scan.labels, max_voxels), scan.labels)
        labels = labels.reoriented("SPL")
    findings = scan.findings
    if findings is None:
        none = Findings(np.empty((0, 3)), np.empty(0))
        findings = none if labels is None else findings_of_labels(labels)
    volume = volume.reoriented("SPL")
    _check_inside(scan, volume, findings)
    return volume, labels, findings


def _check_inside(scan: Scan, volume: Volume, findings: Findings) -> None:
    """Refuse findings outside of their scan: their cubes would show something else."""
    centers = findings.centers_mm[~findings.is_excluded]
    places = volume.to_indices(centers)
    is_outside = (places < -0.5) | (places > np.array(volume.voxels.shape[1:]) - 0.5)
    if num_outside := int(is_outside.any(1).sum()):
        raise DataError(
            f"{num_outside} of {len(centers)} findings of {scan.image} lie outside of it",
            fix="give coordinates in mm of the patient towards left, back and head (LPS)",
        )


@dataclass(frozen=True)
class _Cutter:
    """Cuts the cubes of a scan.

    Attributes:
        volume: it.
        labels: of its voxels.
        findings: in it.
        settings: how cubes are cut.
    """

    volume: Volume
    labels: Volume | None
    findings: Findings
    settings: CubeSettings

    @property
    def radii_mm(self) -> np.ndarray:
        """Of the findings, (F,)."""
        sizes = self.findings.diameters_mm
        return np.where(sizes < 0, UNKNOWN_DIAMETER_MM, sizes) / 2

    def positives(self) -> list[tuple[np.ndarray, np.ndarray] | None]:
        """Return shades and mask of each finding that counts; `None` where another is near."""
        found = []
        centers, radii = self.findings.centers_mm, self.radii_mm
        for at in np.flatnonzero(~self.findings.is_excluded):
            cube = cube_at(self.volume, centers[at], self.settings.cube_voxels)
            is_shared = _reaches(cube, np.delete(centers, at, 0), np.delete(radii, at))
            found.append(
                None
                if is_shared
                else (
                    shades_of(cube, self.settings.window_hu),
                    mask_of(cube, centers[at], float(radii[at]), self.labels),
                )
            )
        return found

    def lung_places(self, number: int) -> np.ndarray:
        """Return places of the lungs, (P, 3), drawn at random; none where no lungs are found."""
        try:
            inside = np.flatnonzero(find_lungs(self.volume).voxels[0])
        except DataError:
            return np.empty((0, 3))
        draws = Draws(number)
        count = _TRIES * self.settings.negatives_per_scan
        drawn = inside[[draws.integer(0, len(inside) - 1) for _ in range(count)]]
        places = np.unravel_index(drawn, self.volume.voxels.shape[1:])
        return self.volume.to_mm(np.stack(places, 1))

    def negatives(self, places: np.ndarray) -> list[np.ndarray]:
        """Return the shades around the first places (P, 3) without any finding near them."""
        found = []
        for place in places:
            if len(found) == self.settings.negatives_per_scan:
                break
            cube = cube_at(self.volume, place, self.settings.cube_voxels)
            if not _reaches(cube, self.findings.centers_mm, self.radii_mm):
                found.append(shades_of(cube, self.settings.window_hu))
        return found


def _candidates_of(scans: Sequence[Scan], path: Path | None) -> list[Marks | None]:
    """Return what a file lists of each scan, by its name or its series; `None` of others."""
    if path is None:
        return [None] * len(scans)
    said = read_marks(path, "class")
    names = [listed_name(scan, said) for scan in scans]
    if not any(names):
        warnings.warn(
            f"{path} lists candidates of {len(said):,} scans, and none of them is one of the"
            f" {len(scans):,} beside it: there are no cubes without a nodule",
            stacklevel=4,
        )
    return [None if name is None else said[name] for name in names]


def _is_known(scan: Scan) -> bool:
    """Return whether it is known where nodules are, and so where none are."""
    return scan.findings is not None or scan.labels is not None


def _shuffled(marks: Marks, number: int) -> np.ndarray:
    """Return where candidates are no findings, (P, 3), in a random order."""
    places = marks.centers_mm[marks.scores == 0]
    return places[permutation(len(places), number)]


def _reaches(cube: Volume, centers_mm: np.ndarray, radii_mm: np.ndarray) -> bool:
    """Return whether a finding reaches into a cube."""
    if not len(centers_mm):
        return False
    places, size = cube.to_indices(centers_mm), cube.voxels.shape[1] - 0.5
    away = np.maximum(np.maximum(-0.5 - places, places - size), 0) * SPACING_MM
    return bool((np.linalg.norm(away, axis=1) < radii_mm).any())
