"""Volumes as a transform leaves them, made once: on disk, where patches are read from, or here.

A volume is kept in a folder named by a hash of its files' paths, sizes and times and of the fixed
part of the transform. What is kept shows what the originals show: it belongs to the same owner.
"""

import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import xxhash

from deepseek.datasets.kept_folder import SlowReport
from deepseek.datasets.metaimage import voxel_file
from deepseek.datasets.parallel_encoding import count_cores
from deepseek.datasets.volume import Volume
from deepseek.datasets.volume_file import read_volume
from deepseek.datasets.volume_source import VolumePair
from deepseek.datasets.volume_transforms import VolumeTransform
from deepseek.errors import DataError

FORMAT_VERSION = 2
ABOUT = "volume.json"
"""File of a prepared volume that is there only if all of it is."""
GIB = 2**30
MAX_THREADS = 8
MAX_LABEL = 4095
FOREGROUND_VOXELS = 2000
"""Voxels of each class that are remembered, evenly over the volume: patches are centred on them."""
_ARRAYS = ("voxels", "labels", "foreground", "counts", "affine")


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """A volume ready to be cut.

    Attributes:
        arrays: `voxels` float32 (C, D, H, W); `labels` uint16 (D, H, W); `foreground` int32
            (N, 4), class and index of some voxels of each class but 0; `counts` int64, voxels of
            class 0, 1, ...; `affine` (4, 4). Empty where they lie on disk.
        shape: (C, D, H, W).
        folder: where the arrays lie, one file each.
    """

    arrays: dict[str, np.ndarray]
    shape: tuple[int, ...]
    folder: Path | None = None

    def get(self, name: str) -> np.ndarray:
        """Return an array; from disk it is mapped, not read."""
        if self.folder is None:
            return self.arrays[name]
        # opened anew each time (some 50 us): a map would be copied into a spawned worker
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along D, H and W."""
        return Volume(np.empty((0, 0, 0, 0)), np.asarray(self.get("affine"))).spacing_mm

    @property
    def volume(self) -> Volume:
        """The voxels with their place."""
        return Volume(self.get("voxels"), np.asarray(self.get("affine")))


def prepare_volumes(
    pairs: Sequence[VolumePair], transform: VolumeTransform, folder: Path | None, max_voxels: int
) -> list[PreparedVolume]:
    """Return every pair prepared: from `folder`, or now, several at a time.

    Args:
        pairs: what to read.
        transform: its fixed part is applied.
        folder: where they are kept, `None`: in memory.
        max_voxels: limit of a volume.

    Raises:
        DataError: a volume or its labels cannot be used.
    """
    if folder is not None:
        try:
            # one that was there, and may be shared, keeps its mode: what is put in is closed
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryDirectory(prefix=".making-", dir=folder).cleanup()
        except OSError as error:
            warnings.warn(
                f"volumes are kept in memory: {folder} cannot be written: {error}", stacklevel=2
            )
            folder = None
    prepare = partial(_prepare, transform=transform, folder=folder, max_voxels=max_voxels)
    report = SlowReport("preparing volumes", "prepared", "volumes", total=len(pairs))
    if folder is not None:
        missing = [pair for pair in pairs if not _is_kept(folder / _key(pair, transform))]
        if len(missing) > 1:
            _tell_room(prepare(missing[0]), missing, folder)
    found = []
    with ThreadPoolExecutor(min(MAX_THREADS, count_cores())) as pool:
        for each in pool.map(prepare, pairs):
            found.append(each)
            report.note(len(found))
    report.end(len(found))
    return found


def _tell_room(first: PreparedVolume, missing: Sequence[VolumePair], folder: Path) -> None:
    """Say what volumes will take on disk, and warn where there is less.

    Args:
        first: of those that are missing, prepared.
        missing: it, and those that are still to be made.
        folder: where they are kept.
    """
    if first.folder is None:  # kept in memory
        return
    sizes = [sum(size for _, size, _ in facts_of_files(pair.image)) for pair in missing]
    kept = sum(file.stat().st_size for file in first.folder.iterdir())
    # a volume is kept as float32, its labels as uint16, whatever its file holds and however packed
    needed = kept * sum(sizes[1:]) / max(sizes[0], 1)
    free = shutil.disk_usage(folder).free
    amount = f"about {(kept + needed) / GIB:,.3g} GiB"
    if needed > free:
        warnings.warn(
            f"{len(missing)} prepared volumes take {amount} in {folder}, where {free / GIB:,.3g}"
            " GiB are free: the disk may fill up; set data.cache (cache) to a folder on another"
            " disk, or to off: in memory",
            stacklevel=3,
        )
    elif needed > GIB:
        sys.stderr.write(f"{len(missing)} prepared volumes take {amount} in {folder}\n")


def _prepare(
    pair: VolumePair, transform: VolumeTransform, folder: Path | None, max_voxels: int
) -> PreparedVolume:
    if folder is None:
        arrays = _make(pair, transform, max_voxels)
        return PreparedVolume(arrays, arrays["voxels"].shape)
    place = folder / _key(pair, transform)
    if not _is_kept(place):
        if os.access(place, os.R_OK):  # a cleaner of old files has left a part of it
            _discard(place)
        arrays = _make(pair, transform, max_voxels)
        if os.path.lexists(place) and not os.access(place, os.R_OK):  # of another user
            return PreparedVolume(arrays, arrays["voxels"].shape)
        _write(arrays, place)
    return PreparedVolume({}, tuple(json.loads((place / ABOUT).read_text())["shape"]), place)


def _is_kept(place: Path) -> bool:
    files = [place / ABOUT, *(place / f"{name}.npy" for name in _ARRAYS)]
    return all(os.access(file, os.R_OK) for file in files)


def _discard(place: Path) -> None:
    # what cannot be moved stays, and writing says why
    with (
        suppress(OSError),
        tempfile.TemporaryDirectory(prefix=".making-", dir=place.parent) as away,
    ):
        place.rename(Path(away) / place.name)


def _key(pair: VolumePair, transform: VolumeTransform) -> str:
    words: list = [FORMAT_VERSION, transform.evaluation]
    words += [*facts_of_files(pair.image), *facts_of_files(pair.labels)]
    return xxhash.xxh3_128_hexdigest(json.dumps(words).encode())


def facts_of_files(path: Path) -> list[list]:
    """Return path, size and time of a volume's files: what is made of it holds while they do."""
    facts = [(file.resolve(), file.stat()) for file in _files_of(path)]
    return [[str(file), known.st_size, known.st_mtime_ns] for file, known in facts]


def _files_of(path: Path) -> list[Path]:
    """Return a file, and the voxels beside it where it is a header; or the files below a folder."""
    if path.is_dir():
        return sorted(each for each in path.rglob("*") if each.is_file())
    if path.suffix.lower() == ".mhd":
        voxels = voxel_file(path)
        return [path, voxels] if voxels.is_file() else [path]
    return [path]


def _write(arrays: dict[str, np.ndarray], place: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
    try:
        for name in _ARRAYS:
            np.save(temporary / f"{name}.npy", arrays[name], allow_pickle=False)
        about = {"shape": list(arrays["voxels"].shape)}
        (temporary / ABOUT).write_text(json.dumps(about))
        try:
            os.rename(temporary, place)
        except OSError:  # another process was first, with the same content
            if not _is_kept(place):
                raise
    except OSError as error:
        raise DataError(
            f"{place.parent} cannot be written: {error.strerror}",
            fix="free the disk, or set cache to another folder, or to off",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make(pair: VolumePair, transform: VolumeTransform, max_voxels: int) -> dict[str, np.ndarray]:
    image = read_volume(pair.image, max_voxels=max_voxels)
    labels = laid_on(image, read_labels(pair.labels, max_voxels), pair.labels)
    image = transform.place(image, max_voxels=max_voxels, where=str(pair.image))
    labels = transform.place(labels, is_labels=True, max_voxels=max_voxels, where=str(pair.labels))
    known = np.ascontiguousarray(labels.voxels[0])
    if image.voxels.min() == image.voxels.max():
        raise DataError(
            f"{pair.image}: every voxel is {image.voxels.flat[0]:g}: there is nothing to see",
            fix="leave the volume out, or copy it again from its source",
        )
    return {
        "voxels": transform.scale_intensity(image.voxels),
        "labels": known,
        "foreground": _foreground(known),
        "counts": np.bincount(known.ravel()).astype(np.int64),
        "affine": image.affine,
    }


def read_labels(path: Path, max_voxels: int) -> Volume:
    """Return a volume of class numbers, uint16 (1, D, H, W).

    Raises:
        DataError: it cannot be read, has several channels, or holds other numbers.
    """
    volume = read_volume(path, max_voxels=max_voxels)
    voxels = volume.voxels
    if len(voxels) != 1:
        raise DataError(
            f"{path} has {len(voxels)} channels of labels", fix="give one number for each voxel"
        )
    low, high = voxels.min(), voxels.max()
    if low < 0 or high > MAX_LABEL or (voxels.dtype.kind == "f" and (voxels % 1).any()):
        raise DataError(
            f"{path} holds labels from {low:g} to {high:g} that are not all class numbers"
            f" 0..{MAX_LABEL}",
            fix="number the classes 0, 1, 2, ..., 0 for the background",
        )
    return Volume(voxels.astype(np.uint16), volume.affine)


def laid_on(image: Volume, labels: Volume, path: Path) -> Volume:
    """Return labels, those of `path`, with their axes as those of the image lead, at its place.

    What is left of a difference is rounding, as of spacings in float32; resampled by their own
    they could have another shape.

    Raises:
        DataError: they differ in shape or place.
    """
    labels = labels.reoriented(image.orientation)
    shapes = image.voxels.shape[1:], labels.voxels.shape[1:]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{path} has {_shown(shapes[1])} voxels, its volume {_shown(shapes[0])}",
            fix="draw the labels on this volume, or resample them to it",
        )
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shapes[0]])).reshape(3, -1).T
    apart = np.linalg.norm(image.to_mm(corners) - labels.to_mm(corners), axis=1).max()
    if apart > min(image.spacing_mm):
        raise DataError(
            f"{path} lies up to {apart:.1f} mm beside its volume: origin, spacing or"
            " directions differ",
            fix="give both files the geometry of the scanner",
        )
    return Volume(labels.voxels, image.affine)


def _foreground(labels: np.ndarray) -> np.ndarray:
    found = []
    for number in np.unique(labels)[np.unique(labels) > 0].tolist():
        places = np.flatnonzero(labels == number)
        places = places[:: -(-len(places) // FOREGROUND_VOXELS)]
        indices = np.column_stack(np.unravel_index(places, labels.shape))
        found.append(np.column_stack([np.full(len(indices), number), indices]))
    return np.concatenate(found or [np.empty((0, 4))]).astype(np.int32)


def _shown(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)
