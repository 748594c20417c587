"""Numbers that describe a nodule: its size and form, its density and edge, what surrounds it.

After Aerts et al. 2014, doi 10.1038/ncomms5006 (radiomics: form, intensity and texture of what is
outlined), and Zwanenburg et al. 2020, arXiv 1612.07003. Departures: few numbers, for few nodules;
the area of a surface is the area of the voxels' faces, divided by 1.5, its mean over directions.
Needs scipy.

Shapes: D H W voxels of a cube, F features.
"""

import numpy as np

from deepseek.errors import DataError
from deepseek.registry import import_extra

TISSUE = 0.45
"""Of the window 0..1: brighter is a vessel, the wall, or solid."""
_SHELLS_MM = ((-6, -4), (-4, -2), (-2, 0), (0, 2), (2, 4), (4, 8))
_BLOB_SIGMAS_MM = (1.0, 2.0, 4.0)
_OPENINGS = (1, 2, 3)
_LEAST_VOXELS = 4


def nodule_features(
    voxels: np.ndarray, mask: np.ndarray, spacing_mm: float = 1.0
) -> dict[str, float]:
    """Return the features of a nodule by name, F of them.

    Args:
        voxels: a window of HU as 0..1, (D, H, W).
        mask: of the nodule, (D, H, W).
        spacing_mm: between voxels, along every axis.

    Raises:
        DataError: the mask is empty.
        MissingExtraError: scipy is not installed.
    """
    mask = np.asarray(mask, bool)
    if not mask.any():
        raise DataError("the mask of the nodule is empty", fix="give the voxels that belong to it")
    ndimage = import_extra("scipy.ndimage", "medical")
    return {
        **_form(ndimage, mask, spacing_mm),
        **_density(ndimage, voxels, mask),
        **_surroundings(ndimage, voxels, mask, spacing_mm),
        **_blobs(ndimage, voxels, mask, spacing_mm),
    }


def _form(ndimage, mask: np.ndarray, spacing_mm: float) -> dict[str, float]:
    volume = mask.sum() * spacing_mm**3
    padded = np.pad(mask, 1).astype(np.int8)
    faces = sum(int(np.abs(np.diff(padded, axis=axis)).sum()) for axis in range(3))
    area = faces * spacing_mm**2 / 1.5
    places = np.argwhere(mask) * spacing_mm
    away = places - places.mean(0)
    longest, middle, shortest = np.sqrt(
        np.maximum(np.linalg.eigvalsh(away.T @ away / len(away)), 1e-3)
    )[::-1].tolist()
    reach = np.sqrt((away**2).sum(1)).max() + spacing_mm / 2
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm).max()
    cross, form = ndimage.generate_binary_structure(3, 1), {}
    for times in _OPENINGS:
        opened = ndimage.binary_opening(mask, cross, iterations=times)
        closed = ndimage.binary_closing(np.pad(mask, times + 1), cross, iterations=times)
        form[f"opened_{times}"] = float(opened.sum() / mask.sum())
        form[f"closed_{times}"] = float(np.log(closed.sum() / mask.sum()))
    return {
        "log_volume": float(np.log(volume)),
        "log_area": float(np.log(area)),
        "sphericity": float(np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / area),
        "log_length": float(np.log(4 * longest)),
        "elongation": middle / longest,
        "flatness": shortest / longest,
        "log_reach": float(np.log(reach / (3 * volume / (4 * np.pi)) ** (1 / 3))),
        "relative_depth": float(depth / volume ** (1 / 3)),
        **form,
    }


def _density(ndimage, voxels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    inside = voxels[mask]
    eroded = ndimage.binary_erosion(mask)
    core = voxels[eroded] if eroded.sum() > _LEAST_VOXELS else inside
    rim = mask & ~eroded
    slope = ndimage.gaussian_gradient_magnitude(voxels, 1)[rim]
    percentiles = {f"percentile_{at}": float(np.percentile(inside, at)) for at in (10, 50, 90, 99)}
    return {
        "mean": float(inside.mean()),
        "std": float(inside.std()),
        **percentiles,
        "highest": float(inside.max()),
        "core_mean": float(core.mean()),
        "core_std": float(core.std()),
        "rim_mean": float(voxels[rim].mean()),
        "slope_mean": float(slope.mean()),
        "slope_std": float(slope.std()),
        "share_of_ground_glass": float((inside < 0.35).mean()),
        "share_above_065": float((inside > 0.65).mean()),
        "share_above_080": float((inside > 0.8).mean()),
    }


def _surroundings(
    ndimage, voxels: np.ndarray, mask: np.ndarray, spacing_mm: float
) -> dict[str, float]:
    """Return mean and spread of shells by their depth; of the whole where a shell is empty."""
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    depth = ndimage.distance_transform_edt(mask, sampling=spacing_mm) - outside
    found = {}
    for low, high in _SHELLS_MM:
        shell = (-depth > low) & (-depth <= high)
        part = voxels[shell] if shell.sum() >= _LEAST_VOXELS else voxels[mask]
        found[f"shell_{low}_{high}_mean"] = float(part.mean())
        found[f"shell_{low}_{high}_std"] = float(part.std())
        if low >= 0:
            found[f"shell_{low}_{high}_tissue"] = float((part > TISSUE).mean())
    return found


def _blobs(ndimage, voxels: np.ndarray, mask: np.ndarray, spacing_mm: float) -> dict[str, float]:
    found = {}
    for sigma in _BLOB_SIGMAS_MM:
        width = sigma / spacing_mm
        response = -(width**2) * ndimage.gaussian_laplace(voxels, width)[mask]
        found[f"blob_{sigma:g}_mean"] = float(response.mean())
        found[f"blob_{sigma:g}_std"] = float(response.std())
        found[f"blob_{sigma:g}_high"] = float(np.percentile(response, 95))
    return found
