"""A chest CT that nobody was scanned for: body, lungs, vessels, nodules and noise, in HU.

For tests and demonstrations of the whole way from DICOM to a report. It is drawn by formula, slice
by slice, so that 512 x 512 x 300 voxels take seconds; only the nodules may have real shapes.

Shapes: D slices from the feet up, H rows to the back, W columns to the left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepseek.datasets.volume import Volume, make_affine
from deepseek.errors import ConfigError
from deepseek.medical.froc import Findings
from deepseek.medical.nodule_shapes import NoduleShape, invent_nodule_shapes
from deepseek.registry import import_extra

AIR, LUNG, FAT, TISSUE, VESSEL, BONE = -1000.0, -860.0, -90.0, 45.0, 40.0, 320.0
TEXTURE_HU = {1: -620.0, 2: -480.0, 3: -300.0, 4: -80.0, 5: 30.0}
"""What a nodule shows, by its texture score: from ground glass to solid."""
VESSELS_PER_LUNG = 40
MARGIN_MM = 4.0
"""Between nodules, and around them to the edge of the lung."""
# centre and half axes along D, H, W, as shares of half the field of view
LUNGS = (((0.0, -0.05, -0.42), (0.92, 0.5, 0.3)), ((0.0, -0.05, 0.42), (0.92, 0.5, 0.3)))
_TRIES = 400


@dataclass(frozen=True, eq=False)
class Phantom:
    """A scan with what is in it.

    Attributes:
        volume: int16 HU, (1, D, H, W), oriented `SPL`.
        labels: uint8 (D, H, W): 0, and 1 where a nodule is.
        findings: centres in mm and diameters of the nodules.
        shapes: of the nodules, in the same order.
    """

    volume: Volume
    labels: np.ndarray
    findings: Findings
    shapes: tuple[NoduleShape, ...]


def make_phantom(
    shape: Sequence[int] = (128, 192, 192),
    spacing_mm: Sequence[float] = (2.5, 1.9, 1.9),
    *,
    num_nodules: int = 3,
    shapes: Sequence[NoduleShape] | None = None,
    noise_hu: float = 25.0,
    seed: int = 0,
) -> Phantom:
    """Draw a scan; needs scipy.

    Args:
        shape: voxels along D, H, W; the chest fills them, whatever their size in mm.
        spacing_mm: along D, H, W.
        num_nodules: as many as find room at the most.
        shapes: to choose from, such as `read_nodule_shapes` returns; invented ones by default.
        noise_hu: standard deviation.
        seed: of everything random.

    Raises:
        ConfigError: an argument is out of its range, or no nodule fits into the lungs.
        MissingExtraError: scipy is missing.
    """
    if len(shape) != 3 or min(shape) < 16 or len(spacing_mm) != 3 or min(spacing_mm) <= 0:
        raise ConfigError(
            f"shape={tuple(shape)}, spacing_mm={tuple(spacing_mm)} is no volume of 16 voxels and"
            " more along each axis",
            fix="give three sizes, and three spacings above 0",
        )
    if num_nodules < 0 or noise_hu < 0:
        raise ConfigError(f"num_nodules={num_nodules}, noise_hu={noise_hu}", fix="give 0 or more")
    rng = np.random.default_rng(seed)
    field = np.array(shape) * np.array(spacing_mm)
    affine = make_affine(spacing_mm, origin_mm=tuple(-field[::-1] / 2))
    voxels = _draw_chest(shape, rng)
    for lung in LUNGS:
        _draw_vessels(voxels, lung, np.array(spacing_mm), rng)
    labels = np.zeros(tuple(shape), np.uint8)
    chosen = invent_nodule_shapes(max(1, num_nodules), seed) if shapes is None else list(shapes)
    placed = _place(chosen, num_nodules, field, rng)
    if num_nodules and not placed:
        raise ConfigError(
            f"no nodule finds room in lungs of {'x'.join(map(str, shape))} voxels",
            fix="give a larger volume, or smaller nodules",
        )
    for nodule, center in placed:
        _draw_nodule(voxels, labels, nodule, center, np.array(spacing_mm))
    for slice_ in voxels:
        slice_ += rng.normal(0, noise_hu, slice_.shape).astype(np.int16)
    np.maximum(voxels, -1024, out=voxels)
    volume = Volume(voxels[None], affine)
    centers = np.array([center for _, center in placed]).reshape(-1, 3)
    findings = Findings(
        volume.to_mm(np.round(centers / spacing_mm)),
        np.array([nodule.diameter_mm for nodule, _ in placed]),
    )
    return Phantom(volume, labels, findings, tuple(nodule for nodule, _ in placed))


def _draw_chest(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    depth, height, width = shape
    voxels = np.full((depth, height, width), AIR, np.int16)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    body = (y / 0.78) ** 2 + (x / 0.94) ** 2
    spine = ((y - 0.5) / 0.14) ** 2 + (x / 0.12) ** 2 < 1
    ribs = np.abs(body - 0.8) < 0.05
    around = np.arctan2(y, x)
    flat = np.where(body < 1, np.where(body < 0.88, TISSUE, FAT), AIR)
    mottled = rng.normal(0, 15, (height, width))
    for number, z in enumerate(np.linspace(-1, 1, depth)):
        slice_ = flat.copy()
        slice_[ribs & (np.sin(6 * np.abs(around) + 40 * z) > 0.6)] = BONE
        slice_[spine] = BONE if int((z + 1) * 12) % 4 else TISSUE  # vertebrae and discs
        for center, half in LUNGS:
            inside = 1 - ((z - center[0]) / half[0]) ** 2
            lung = ((y - center[1]) / half[1]) ** 2 + ((x - center[2]) / half[2]) ** 2 < inside
            slice_[lung] = (LUNG + mottled)[lung]
        voxels[number] = slice_
    return voxels


def _draw_vessels(voxels: np.ndarray, lung, spacing: np.ndarray, rng: np.random.Generator) -> None:
    """Draw tubes that leave the middle of the chest, bend and grow thin."""
    half = np.array(voxels.shape) * spacing / 2
    center, axes = (np.array(each) for each in lung)
    begin = half * (1 + center * np.array([1, 1, 0.45]))
    for _ in range(VESSELS_PER_LUNG):
        direction = rng.normal(0, 1, 3)
        direction[2] = abs(direction[2]) * np.sign(center[2])
        direction /= np.linalg.norm(direction)
        at, radius = begin.copy(), rng.uniform(1.5, 3.5)
        while radius > 0.7:
            inside = (((at / half - 1 - center) / axes) ** 2).sum()
            if inside < 0.95:
                _fill_ball(voxels, at / spacing, radius / spacing)
            elif inside > 1.5:
                break
            at = at + direction * max(1.0, 0.7 * radius)
            direction = direction + rng.normal(0, 0.12, 3)
            direction /= np.linalg.norm(direction)
            radius *= 0.985


def _fill_ball(voxels: np.ndarray, center: np.ndarray, radii: np.ndarray) -> None:
    low = np.maximum(np.ceil(center - radii), 0).astype(int)
    high = np.minimum(np.floor(center + radii) + 1, voxels.shape).astype(int)
    if (high <= low).any():
        return
    parts = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
    d, h, w = (
        ((part - at) / radius) ** 2 for part, at, radius in zip(parts, center, radii, strict=True)
    )
    ball = d[:, None, None] + h[None, :, None] + w[None, None] <= 1
    box = voxels[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    box[ball] = VESSEL


def _place(
    shapes: Sequence[NoduleShape], count: int, field: np.ndarray, rng: np.random.Generator
) -> list[tuple[NoduleShape, np.ndarray]]:
    """Return shapes with centres in mm from the first voxel, inside the lungs and apart."""
    placed: list[tuple[NoduleShape, np.ndarray]] = []
    for _ in range(_TRIES):
        if len(placed) == count:
            break
        shape = shapes[int(rng.integers(len(shapes)))]
        center, axes = (np.array(each) for each in LUNGS[int(rng.integers(len(LUNGS)))])
        reach = np.array(shape.radii_mm) + MARGIN_MM
        room = axes * field / 2 - reach
        if (room <= 0).any():
            continue
        direction = rng.normal(0, 1, 3)
        direction *= rng.uniform(0, 1) ** (1 / 3) / np.linalg.norm(direction)
        at = field / 2 * (1 + center) + direction * room
        apart = [np.linalg.norm(at - other) - max(each.radii_mm) for each, other in placed]
        if all(gap > max(shape.radii_mm) + MARGIN_MM for gap in apart):
            placed.append((shape, at))
    return placed


def _draw_nodule(
    voxels: np.ndarray,
    labels: np.ndarray,
    nodule: NoduleShape,
    center_mm: np.ndarray,
    spacing: np.ndarray,
) -> None:
    """Put a nodule in, its edge as soft as a scanner's."""
    ndimage = import_extra("scipy.ndimage", "medical")
    mask = np.pad(nodule.draw(spacing.tolist()), 2)
    start = np.round(center_mm / spacing).astype(int) - np.array(mask.shape) // 2
    low, high = np.maximum(start, 0), np.minimum(start + mask.shape, voxels.shape)
    cut = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    share = ndimage.gaussian_filter(mask.astype(np.float32), 0.6)[cut]
    before = voxels[box].astype(np.float32)
    shown = np.maximum(before, TEXTURE_HU[min(max(nodule.texture, 1), 5)])
    voxels[box] = before + share * (shown - before)
    labels[box][mask[cut]] = 1
