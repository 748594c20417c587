"""Where in a scan there is something to look for, so that windows beside it are not computed.

A mask is coarse, and a little larger than what it is of: it costs less than what it saves.
"""

import numpy as np

from deepseek.datasets.resampling import labels_like
from deepseek.datasets.volume import Volume
from deepseek.errors import ConfigError, DataError
from deepseek.medical.chest import body_mask, lung_mask
from deepseek.models.volume_predictor import Region
from deepseek.registry import import_extra

COARSE_MM = 3.0
"""Every n-th voxel is looked at, so that they are so far apart at most, and never closer."""
MARGIN_VOXELS = 2
REGIONS = ("body", "lungs")


def find_region(name: str) -> Region:
    """Return what finds the body, or the lungs, in a chest CT in Hounsfield units.

    Args:
        name: `body` or `lungs`.

    What is returned raises `DataError` where there is nothing of the kind: that a scan has no lungs
    is more often a mistake than so.

    Raises:
        ConfigError: it is another name.
    """
    if name not in REGIONS:
        raise ConfigError(f"region={name!r} is not known", fix=f"one of {', '.join(REGIONS)}")

    def find(volume: Volume) -> Volume:
        turned = volume.reoriented("SPL")
        strides = [max(1, int(COARSE_MM / size)) for size in turned.spacing_mm]
        every = (slice(None), *(slice(None, None, stride) for stride in strides))
        affine = turned.affine.copy()
        affine[:3, :3] *= strides
        # a voxel stands for those behind it as well: its middle is theirs
        affine[:3, 3] += turned.affine[:3, :3] @ ((np.array(strides) - 1) / 2)
        coarse = Volume(turned.voxels[every], affine)
        hounsfield = coarse.voxels[0]
        mask = body_mask(hounsfield) if name == "body" else lung_mask(hounsfield, coarse.spacing_mm)
        if not mask.any():
            raise DataError(
                f"no {name} are found in this scan: nothing would be looked at",
                fix="leave region out, or give a chest CT in Hounsfield units",
            )
        ndimage = import_extra("scipy.ndimage", "medical")
        wide = ndimage.binary_dilation(mask, iterations=MARGIN_VOXELS).astype(np.uint8)
        return labels_like(Volume(wide[None], affine), volume.voxels.shape[1:], volume.affine)

    return find


find_body = find_region("body")
"""Finds the body."""
find_lungs = find_region("lungs")
"""Finds the lungs."""
