import math

import pytest
import torch

from deepseek.models import CenterDetector3D
from deepseek.models.peaks import find_peaks, suppress


def maps(spots, size=16, diameter=6.0):
    """Logits with a smooth spot of each height at each place, and log diameters."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(size).float()] * 3, indexing="ij"))
    heat = torch.full((size,) * 3, 1e-4)
    for height, *center in spots:
        away = ((grid - torch.tensor(center).view(3, 1, 1, 1)) ** 2).sum(0)
        heat = torch.maximum(heat, height * torch.exp(-away / 2))
    return heat.logit(), torch.full_like(heat, math.log(diameter))


def test_each_spot_is_found_once_the_highest_first():
    peaks = find_peaks(*maps([(0.5, 3, 4, 5), (0.9, 11, 12, 10)]), (1, 1, 1), (1.0, 1.0, 1.0))
    assert peaks.scores[:2].tolist() == pytest.approx([0.9, 0.5], abs=1e-5)
    assert peaks.indices[0].tolist() == pytest.approx([11, 12, 10], abs=0.05)
    assert peaks.indices[1].tolist() == pytest.approx([3, 4, 5], abs=0.05)
    assert peaks.diameters_mm[:2].tolist() == pytest.approx([6, 6], abs=1e-4)
    assert len(find_peaks(*maps([(0.9, 3, 4, 5)]), (1, 1, 1), (1, 1, 1), min_score=0.4).scores) == 1


def test_places_are_voxels_of_the_volume_and_lie_between_those_of_the_map():
    logits, sizes = maps([(0.9, 5.3, 4, 5)])
    peaks = find_peaks(logits, sizes, (2, 2, 1), (1.0, 1.0, 1.0))
    d, h, w = peaks.indices[0].tolist()
    assert d == pytest.approx(2 * 5.3 + 0.5, abs=0.3)
    assert (h, w) == pytest.approx((8.5, 5), abs=0.1)


def test_of_two_in_one_the_higher_stays():
    spots = [(0.9, 8, 8, 8), (0.8, 8, 8, 11)]
    near = find_peaks(*maps(spots, diameter=8), (1, 1, 1), (1, 1, 1), min_score=0.3)
    assert near.scores.tolist() == pytest.approx([0.9], abs=1e-5)
    far = find_peaks(*maps(spots, diameter=8), (1, 1, 1), (1, 1, 2.0), min_score=0.3)
    assert len(far.scores) == 2  # 6 mm apart where voxels are 2 mm


def test_suppression_is_that_of_a_loop():
    torch.manual_seed(0)
    centers, sizes = torch.rand(60, 3) * 20, torch.rand(60) * 8
    kept = []
    for i in range(60):
        radii = [max(sizes[i], sizes[j]) / 2 for j in kept]
        if all((centers[i] - centers[j]).norm() >= r for j, r in zip(kept, radii, strict=True)):
            kept.append(i)
    assert suppress(centers, sizes).tolist() == kept
    assert suppress(torch.empty(0, 3), torch.empty(0)).tolist() == []


def test_a_detector_has_a_map_of_the_resolution_that_is_asked_for():
    volume = torch.randn(1, 1, 16, 16, 16)
    shapes = []
    for skipped in (0, 1, 2):
        torch.manual_seed(0)
        model = CenterDetector3D(
            num_classes=1, features=(4, 6, 8, 10), blocks=1, skipped_levels=skipped
        ).eval()
        with torch.no_grad():
            outputs = model(volume)
        shapes.append(tuple(outputs.shape[1:]))
        assert outputs[:, 0].sigmoid().mean() < 0.05  # nothing is a centre at first
        assert outputs[:, 1].exp().mean().item() == pytest.approx(10, rel=0.5)
    assert shapes == [(2, 16, 16, 16), (2, 8, 8, 8), (2, 4, 4, 4)]
