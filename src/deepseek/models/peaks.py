"""From a map of centres to a list of them: peaks, their place between voxels, one for each thing.

Non-maximum suppression in plain tensors, without a compiled extension: a peak is a largest value
of its 3 x 3 x 3 neighbours (Zhou et al. 2019, arXiv 1904.07850, section 4); of peaks nearer to
each other than the radius of the larger, the highest is kept.

Shapes: D H W places of a map, P peaks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Peaks:
    """Centres in a volume, the highest score first.

    Attributes:
        indices: (P, 3), d, h, w in voxels of the volume, between them too; float32.
        diameters_mm: (P,).
        scores: probabilities, (P,).
    """

    indices: Tensor
    diameters_mm: Tensor
    scores: Tensor


def find_peaks(
    logits: Float[Tensor, "D H W"],
    log_diameters: Float[Tensor, "D H W"],
    stride: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    max_peaks: int = 50,
    min_score: float = 0.0,
) -> Peaks:
    """Return the centres that a map shows, each thing once.

    Args:
        logits: of a centre.
        log_diameters: in mm.
        stride: voxels of the volume for each place of the map, along D, H, W.
        spacing_mm: between voxels of the volume.
        max_peaks: before suppression.
        min_score: probability below which a peak is left out.
    """
    logits, log_diameters = logits.float(), log_diameters.float()
    highest = F.max_pool3d(logits[None, None], 3, 1, 1)[0, 0]
    flat = logits.masked_fill(logits < highest, -torch.inf).flatten()
    top, places = flat.topk(min(max_peaks, flat.numel()))
    is_peak = (top > -torch.inf) & (top.sigmoid() >= min_score)
    top, places = top[is_peak], places[is_peak]
    indices = torch.stack(torch.unravel_index(places, logits.shape), 1)
    steps = torch.tensor(stride, dtype=torch.float32, device=logits.device)
    found = (indices + _offsets(logits, indices)) * steps + (steps - 1) / 2
    diameters = log_diameters.flatten()[places].clamp(-2, 6).exp()
    millimetres = found * torch.tensor(spacing_mm, dtype=torch.float32, device=logits.device)
    kept = suppress(millimetres, diameters)
    return Peaks(found[kept], diameters[kept], top[kept].sigmoid())


def _offsets(logits: Tensor, indices: Tensor) -> Tensor:
    """Return where the mass of each peak's neighbourhood lies from its middle, (P, 3) places."""
    probs = F.pad(logits.sigmoid(), (1, 1, 1, 1, 1, 1))
    near = torch.arange(3, device=logits.device)
    offsets = torch.cartesian_prod(near, near, near)  # (27, 3)
    d, h, w = (indices[:, None] + offsets[None]).unbind(-1)
    weights = probs[d, h, w]
    return (weights[..., None] * (offsets - 1)).sum(1) / weights.sum(1, keepdim=True).clamp(1e-12)


def suppress(centers_mm: Float[Tensor, "P 3"], diameters_mm: Float[Tensor, "P"]) -> Tensor:
    """Return the numbers of the centres that stay, int64, in their order.

    A centre goes if it lies within the radius, its own or the other's, of one before it that
    stays. Give them sorted by score.
    """
    apart = torch.cdist(centers_mm, centers_mm).cpu()
    radii = diameters_mm.cpu() / 2
    is_near = apart < torch.maximum(radii[:, None], radii[None])
    kept: list[int] = []
    for number in range(len(apart)):
        if not is_near[number, kept].any():
            kept.append(number)
    return torch.tensor(kept, dtype=torch.int64, device=centers_mm.device)
