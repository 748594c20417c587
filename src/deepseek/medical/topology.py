"""Levels of a 3D U-Net for a patch: which axes are halved, and where a convolution reaches.

Paper: Isensee et al. 2021 (nnU-Net), Nature Methods 18, 203-211, supplementary note 2, and the code
of nnU-Net v2: an axis is halved while it keeps four voxels and its voxels are not twice as long as
the shortest; a convolution reaches along an axis as soon as they are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

SMALLEST_LEVEL = 4
MAX_LEVELS = 6
COARSE = 2.0
"""Times the shortest edge from which on a voxel is too long to be halved or convolved along."""
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Topology:
    """Levels from full resolution down.

    Attributes:
        patch: what was asked for, rounded up to a multiple of the product of the strides.
        strides: of each level but the first.
        kernels: of each level.
    """

    patch: Triple
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]

    @property
    def multiple(self) -> Triple:
        """What a patch must be a multiple of."""
        d, h, w = (prod(step[axis] for step in self.strides) for axis in range(3))
        return d, h, w


def plan_levels(
    patch: Sequence[int], spacing_mm: Sequence[float], max_levels: int = MAX_LEVELS
) -> Topology:
    """Return the levels for a patch of so many voxels of such a size, two at least."""
    sizes, edges = [float(size) for size in patch], list(spacing_mm)
    strides: list[Triple] = []
    kernels = [_kernel(edges)]
    while len(strides) + 1 < max_levels:
        axes = [axis for axis in range(3) if sizes[axis] >= 2 * SMALLEST_LEVEL]
        if axes:
            shortest = min(edges[axis] for axis in axes)
            axes = [axis for axis in axes if edges[axis] / shortest < COARSE]
        is_thin = len(axes) == 1 and sizes[axes[0]] < 3 * SMALLEST_LEVEL
        if not axes or is_thin:
            break
        d, h, w = (2 if axis in axes else 1 for axis in range(3))
        strides.append((d, h, w))
        for axis in axes:
            sizes[axis] = ceil(sizes[axis] / 2)
            edges[axis] *= 2
        kernels.append(_kernel(edges))
    if not strides:
        strides, kernels = [(2, 2, 2)], kernels * 2
    multiples = [prod(step[axis] for step in strides) for axis in range(3)]
    d, h, w = (
        ceil(size / multiple) * multiple for size, multiple in zip(patch, multiples, strict=True)
    )
    return Topology((d, h, w), tuple(strides), tuple(kernels))


def _kernel(edges: Sequence[float]) -> Triple:
    d, h, w = (3 if edge / min(edges) < COARSE else 1 for edge in edges)
    return d, h, w
