"""Losses of centre heat maps: focal loss of centres, L1 of log diameters.

Papers: Law and Deng 2018, CornerNet, arXiv 1808.01244, eq. 1 (penalty-reduced focal loss); Zhou et
al. 2019, arXiv 1904.07850, eq. 1 and 3. Departures: Gaussians are as wide as a share of the
diameter, in millimetres; losses are summed over the centres of each sample and not divided by
them, as a sample has few.

Shapes: B batch, N things at most, D H W places of a map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ALPHA, BETA = 2.0, 4.0
SIGMA_SHARE = 1 / 6
"""Width of a centre's Gaussian, as a share of the diameter."""
LEAST_SIGMA_MM = 1.0


def center_targets(
    targets: Float[Tensor, "B N 4"],
    sizes: Sequence[int],
    stride: Sequence[int],
    spacing_mm: Sequence[float],
) -> tuple[Float[Tensor, "B D H W"], Float[Tensor, "B N D H W"]]:
    """Return the heat map, and for each thing which place is its centre (1, else 0).

    Args:
        targets: d, h, w of a centre in voxels, and its diameter in mm; below 0: there is none.
        sizes: of the map.
        stride: voxels for each of its places.
        spacing_mm: between voxels.
    """
    diameters = targets[..., 3]
    is_there = diameters > 0
    sigma = (diameters * SIGMA_SHARE).clamp(min=LEAST_SIGMA_MM)[..., None]
    axes, hits = [], []
    for axis, (size, step, spacing) in enumerate(zip(sizes, stride, spacing_mm, strict=True)):
        places = torch.arange(size, device=targets.device) * step + (step - 1) / 2
        away = (places - targets[..., axis : axis + 1]) * spacing
        axes.append(torch.exp(-(away**2) / (2 * sigma**2)))
        nearest = away.abs().argmin(-1)
        hits.append(F.one_hot(nearest, size).float())
    there = is_there[..., None, None, None]
    spots = torch.einsum("bnd,bnh,bnw->bndhw", *axes) * there
    centers = torch.einsum("bnd,bnh,bnw->bndhw", *hits) * there
    return torch.maximum(spots, centers).amax(1), centers


def score_losses(
    maps: Float[Tensor, "B S D H W"],
    scores: Float[Tensor, "B S"],
    targets: Float[Tensor, "B N 4"],
    stride: Sequence[int],
    spacing_mm: Sequence[float],
) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S"]]:
    """Return absolute errors of scores at the centres of a sample, summed, and how many there are.

    Args:
        maps: of each score, as predicted.
        scores: of the things of a sample; NaN where one is not known, which has no loss.
        targets: as in `center_targets`.
        stride: voxels for each place of the map.
        spacing_mm: between voxels.
    """
    _, centers = center_targets(targets.float(), maps.shape[2:], stride, spacing_mm)
    is_known = ~scores.isnan()
    wanted = scores.nan_to_num()[..., None, None, None]
    away = (maps.float() - wanted).abs() * centers.sum(1)[:, None]
    counts = centers.sum((1, 2, 3, 4))[:, None] * is_known
    return away.sum((2, 3, 4)) * is_known, counts


def center_losses(
    logits: Float[Tensor, "B D H W"],
    log_diameters: Float[Tensor, "B D H W"],
    targets: Float[Tensor, "B N 4"],
    stride: Sequence[int],
    spacing_mm: Sequence[float],
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Return the focal loss of centres and the L1 loss of log diameters, of each sample.

    Args:
        logits: of a centre.
        log_diameters: in mm, as predicted.
        targets: as in `center_targets`.
        stride: voxels for each place of the map.
        spacing_mm: between voxels.
    """
    logits, targets = logits.float(), targets.float()
    heat, centers = center_targets(targets, logits.shape[1:], stride, spacing_mm)
    probs = logits.sigmoid()
    found = -((1 - probs) ** ALPHA) * F.logsigmoid(logits)
    false = -((1 - heat) ** BETA) * probs**ALPHA * F.logsigmoid(-logits)
    focal = torch.where(heat == 1, found, false).sum((1, 2, 3))
    wanted = targets[..., 3].clamp(min=1e-3).log()[..., None, None, None]
    missed = (log_diameters.float()[:, None] - wanted).abs()
    return focal, (missed * centers).sum((1, 2, 3, 4))
