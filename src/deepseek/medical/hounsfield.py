"""Whether the numbers of a CT are Hounsfield units, judged by what every body and its room hold.

The least number says nothing: scanners fill what they did not see with numbers below air, which
look like air once the rescale is forgotten.
"""

from pathlib import Path

import numpy as np

from deepseek.errors import DataError

PADDING_HU = -1024.0
"""Nothing is less dense than air; scanners mark what they did not see by numbers from here down."""
DENSEST_LIMIT_HU = 100_000.0
DENSE_HU, DENSE_SHARE = 4000.0, 0.001
"""Bone and contrast end at 3000 HU, and metal is a small part of a patient."""
AIR_HU, LEAST_AIR = -800.0, 0.001
"""Air and lung end there. Of LIDC-IDRI-0001 to 3 it is 50 to 53 % without padding; with intercept 0
nothing."""
TISSUE_HU, LEAST_TISSUE = (-200.0, 200.0), 0.005
"""Fat, organs, blood: 35 to 40 % there."""
SOLID_HU, LEAST_SOFT = -500.0, 0.2
"""Of what is denser than lung, so much is tissue at the least: 82 to 87 % there, 3 to 4 % with
slope 1.9."""
SUNK_HU, SUNK_SHARE = -1200.0, 0.01
"""Below it may lie padding, of one or two values; noise of many is air that was moved: none there,
45 to 54 % with intercept -2024."""
_FIX = "the rescale of the headers is wrong: export the series anew"


def check_hounsfield(where: Path, limits: tuple[float, float], seen: np.ndarray) -> None:
    """Refuse CT that holds no air, no tissue, or what no matter reaches: its rescale is wrong.

    Args:
        where: what it is called.
        limits: the least and the greatest number of all its voxels.
        seen: some of its voxels, evenly, without those that its headers call padding, (N,).

    Raises:
        DataError: it is no CT in Hounsfield units.
    """
    low, high = limits
    said = f"{where} is CT from {low:g} to {high:g} HU after rescale"
    if low > -200 or high > DENSEST_LIMIT_HU or high < -500 or not len(seen):
        raise DataError(f"{said}: air is about -1000, bone up to 3000", fix=_FIX)
    if (share := _share(seen > DENSE_HU)) > DENSE_SHARE:
        raise DataError(
            f"{where} is CT of which {share:.1%} is above {DENSE_HU:g} HU after rescale: bone is"
            " up to 3000",
            fix=f"{_FIX}; if that is metal, clip it and convert the series to NIfTI",
        )
    beyond = seen[seen < SUNK_HU]
    _, counts = np.unique(beyond, return_counts=True)
    if (share := (len(beyond) - np.sort(counts)[-2:].sum()) / len(seen)) > SUNK_SHARE:
        raise DataError(
            f"{said}, {share:.1%} of it below {SUNK_HU:g} and not padding: air is about -1000",
            fix=_FIX,
        )
    shown = seen[seen > PADDING_HU]
    low_tissue, high_tissue = TISSUE_HU
    is_tissue = (low_tissue <= shown) & (shown <= high_tissue)
    solid = int((shown > SOLID_HU).sum())
    air, tissue = _share(shown <= AIR_HU), _share(is_tissue)
    soft = int(is_tissue.sum()) / max(solid, 1)
    if air < LEAST_AIR or tissue < LEAST_TISSUE or soft < LEAST_SOFT:
        raise DataError(
            f"{said}; without padding {air:.1%} of it is air (about -1000), {tissue:.1%} tissue"
            f" ({low_tissue:g} to {high_tissue:g}), and of what is denser than lung {soft:.1%}",
            fix=f"{_FIX}; if it is right and shows no air or no tissue, convert it to NIfTI",
        )


def _share(is_it: np.ndarray) -> float:
    return float(is_it.mean()) if len(is_it) else 0.0
