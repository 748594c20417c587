"""A patch of a volume: where it lies, how it is turned and bent, what is done to its intensity.

Everything random comes from `Draws`, or from a key drawn of it.

Shapes: C channels; D H W voxels of the volume; P Q R of the patch.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from deepseek.datasets.randomness import Draws, uniforms
from deepseek.datasets.volume_transforms import VolumeTransform

IGNORE_INDEX = -100
ELASTIC_NODES = 5
"""Points along each axis of a patch that are moved at random; the rest is bent between them."""


def choose_start(
    shape: Sequence[int], patch: Sequence[int], foreground: np.ndarray, share: float, draws: Draws
) -> list[int]:
    """Return the first voxel of a patch; below 0 where the volume is smaller.

    Args:
        shape: of the volume.
        patch: likewise.
        foreground: some voxels of each class but the background: (N, 4), class and index.
        share: 0..1, how often the patch is centred on a voxel of a class, each as often.
        draws: randomness.
    """
    is_centred = len(foreground) > 0 and draws.chance(share)
    center: Sequence[int] | None = None
    if is_centred:
        classes = np.unique(foreground[:, 0])
        chosen = foreground[foreground[:, 0] == classes[draws.integer(0, len(classes) - 1)]]
        center = chosen[draws.integer(0, len(chosen) - 1), 1:].tolist()
    starts = []
    for axis, (size, extent) in enumerate(zip(shape, patch, strict=True)):
        spare = size - extent
        if spare <= 0:
            starts.append(spare // 2)
        elif center is None:
            starts.append(draws.integer(0, spare))
        else:
            starts.append(min(max(center[axis] - extent // 2, 0), spare))
    return starts


def cut(
    voxels: np.ndarray, labels: np.ndarray, start: Sequence[int], patch: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return a patch of voxels, 0 outside the volume, and of labels, -100 outside.

    Args:
        voxels: (C, D, H, W).
        labels: (D, H, W).
        start: its first voxel; may lie outside.
        patch: its size.
    """
    found = np.zeros((len(voxels), *patch), np.float32)
    known = np.full(tuple(patch), IGNORE_INDEX, np.int64)
    inside, there = [], []
    for first, extent, size in zip(start, patch, labels.shape, strict=True):
        low, high = max(first, 0), min(first + extent, size)
        inside.append(slice(low - first, max(high, low) - first))
        there.append(slice(low, max(high, low)))
    found[(slice(None), *inside)] = voxels[(slice(None), *there)]
    known[tuple(inside)] = labels[tuple(there)]
    return found, known


def sample_patch(
    voxels: np.ndarray,
    labels: np.ndarray,
    foreground: np.ndarray,
    transform: VolumeTransform,
    spacing_mm: Sequence[float],
    foreground_share: float,
    draws: Draws,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a random patch (C, P, Q, R) float32 and its labels (P, Q, R) int64, augmented."""
    patch = transform.patch or labels.shape
    start = choose_start(labels.shape, patch, foreground, foreground_share, draws)
    return augmented_patch(voxels, labels, start, patch, transform, spacing_mm, draws)


def augmented_patch(
    voxels: np.ndarray,
    labels: np.ndarray,
    start: Sequence[int],
    patch: Sequence[int],
    transform: VolumeTransform,
    spacing_mm: Sequence[float],
    draws: Draws,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the patch that begins at `start`, and its labels, augmented; as `sample_patch`."""
    amounts = {
        name: transform.amounts[name] if _is_done(name, transform, draws) else 0.0
        for name in ("rotate", "scale", "elastic")
    }
    if any(amounts.values()):
        places = _bent_places(start, patch, spacing_mm, amounts, draws)
        found, known = _interpolate(voxels, labels, places)
    else:
        found, known = cut(voxels, labels, start, patch)
    for axis in transform.flip_axes:
        if draws.chance(0.5):
            found, known = np.flip(found, axis + 1), np.flip(known, axis)
    return _change_intensity(found, transform, draws), np.ascontiguousarray(known)


def _bent_places(
    start: Sequence[int],
    patch: Sequence[int],
    spacing_mm: Sequence[float],
    amounts: dict[str, float],
    draws: Draws,
) -> np.ndarray:
    """Return where in the volume each voxel of the patch comes from, (3, P, Q, R) float32."""
    spacing = np.asarray(spacing_mm)
    turn = _rotation([math.radians(_around_0(amounts["rotate"], draws)) for _ in range(3)])
    zoom = math.exp(_around_0(math.log1p(amounts["scale"]), draws))
    matrix = (turn * zoom) * spacing / spacing[:, None]  # voxels -> mm, turned -> voxels
    middle = [(extent - 1) / 2 for extent in patch]
    axes = [np.arange(extent) - at for extent, at in zip(patch, middle, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    places = (matrix @ offsets).astype(np.float32).reshape(3, *patch)
    places += (np.asarray(start) + middle).astype(np.float32)[:, None, None, None]
    if amounts["elastic"]:
        nodes = uniforms(3 * ELASTIC_NODES**3, draws.bits()).astype(np.float32) * 2 - 1
        coarse = torch.from_numpy(nodes).reshape(1, 3, *[ELASTIC_NODES] * 3)
        bent = F.interpolate(coarse, tuple(patch), mode="trilinear", align_corners=True)
        places += amounts["elastic"] * bent[0].numpy()
    return places


def _rotation(angles: Sequence[float]) -> np.ndarray:
    """Return the product of rotations about D, H and W, (3, 3)."""
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        once = np.eye(3)
        once[first, first] = once[second, second] = math.cos(angle)
        once[first, second], once[second, first] = -math.sin(angle), math.sin(angle)
        turn = once @ turn
    return turn


def _interpolate(
    voxels: np.ndarray, labels: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels, linearly between those of the volume, and the nearest labels."""
    sizes = np.array(labels.shape)[:, None, None, None]
    # only the part that is asked for: the volume may lie on disk
    low = np.clip(np.floor(places.min((1, 2, 3))).astype(int), 0, sizes.ravel() - 1)
    high = np.clip(np.ceil(places.max((1, 2, 3))).astype(int) + 1, low + 1, sizes.ravel())
    box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    part = torch.from_numpy(np.array(voxels[(slice(None), *box)], np.float32))
    extent = np.maximum(high - low - 1, 1)[:, None, None, None]
    relative = 2 * (places - low[:, None, None, None]) / extent - 1
    grid = torch.from_numpy(np.ascontiguousarray(relative[::-1].transpose(1, 2, 3, 0), np.float32))
    found = F.grid_sample(part[None], grid[None], "bilinear", "zeros", align_corners=True)[0]
    nearest = np.rint(places).astype(np.int64)
    outside = ((nearest < 0) | (nearest >= sizes)).any(0)
    d, h, w = np.clip(nearest, 0, sizes - 1)
    known = labels[d, h, w].astype(np.int64)
    known[outside] = IGNORE_INDEX
    return found.numpy(), known


def _change_intensity(found: np.ndarray, transform: VolumeTransform, draws: Draws) -> np.ndarray:
    amounts = transform.amounts
    if _is_done("brightness", transform, draws):
        found = found * np.float32(1 + _around_0(amounts["brightness"], draws))
    if _is_done("gamma", transform, draws):
        power = math.exp(_around_0(math.log1p(amounts["gamma"]), draws))
        low, high = found.min(), found.max()
        if high > low:
            found = ((found - low) / (high - low)) ** np.float32(power) * (high - low) + low
    if _is_done("noise", transform, draws):
        std = draws.uniform(0, amounts["noise"])
        found = found + np.float32(std) * _normal(found.shape, draws.bits())
    return np.ascontiguousarray(found, np.float32)


def _normal(shape: Sequence[int], key: int) -> np.ndarray:
    """Return normal numbers (Box and Muller 1958)."""
    count = math.prod(shape)
    first, second = uniforms(count, key, 0), uniforms(count, key, 1)
    normal = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
    return normal.astype(np.float32).reshape(tuple(shape))


def _is_done(name: str, transform: VolumeTransform, draws: Draws) -> bool:
    """Return whether a random step is done to this sample."""
    chance = transform.chances[name]
    return transform.amounts[name] > 0 and (chance >= 1 or draws.chance(chance))


def _around_0(limit: float, draws: Draws) -> float:
    return draws.uniform(-limit, limit)
