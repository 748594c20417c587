import math

import pytest
import torch

from deepseek.trainer.center_loss import center_losses, center_targets

ONE = (1.0, 1.0, 1.0)


def test_a_centre_is_one_and_falls_off_with_the_size():
    targets = torch.tensor([[[4.0, 5.0, 6.0, 12.0]], [[4.0, 5.0, 6.0, 24.0]]])
    heat, centers = center_targets(targets, (12, 12, 12), (1, 1, 1), ONE)
    assert (heat[:, 4, 5, 6] == 1).all()
    assert centers.sum() == 2
    assert heat[0, 4, 5, 8].item() == pytest.approx(math.exp(-(2**2) / (2 * 2**2)))
    assert heat[1, 4, 5, 8] > heat[0, 4, 5, 8]


def test_the_nearest_place_of_a_coarser_map_is_the_centre():
    targets = torch.tensor([[[5.0, 5.0, 2.9, 8.0]]])
    heat, centers = center_targets(targets, (6, 6, 6), (2, 2, 2), ONE)
    assert centers[0, 0].argwhere().tolist() == [[2, 2, 1]]  # voxels 4.5, 4.5, 2.5
    assert (heat == 1).sum() == 1


def test_distances_are_millimetres():
    targets = torch.tensor([[[4.0, 4.0, 4.0, 12.0]]])
    heat, _ = center_targets(targets, (8, 8, 8), (1, 1, 1), (2.0, 1.0, 1.0))
    assert heat[0, 5, 4, 4].item() == pytest.approx(heat[0, 4, 6, 4].item())


def test_without_a_nodule_every_place_is_background():
    heat, centers = center_targets(torch.full((1, 1, 4), -1.0), (4, 4, 4), (1, 1, 1), ONE)
    assert heat.sum() == centers.sum() == 0


def test_losses_are_the_formulas_of_the_papers():
    torch.manual_seed(0)
    logits, sizes = torch.randn(2, 4, 4, 4, dtype=torch.float64), torch.randn(2, 4, 4, 4)
    targets = torch.tensor([[[1.0, 2.0, 3.0, 7.0]], [[-1.0, -1.0, -1.0, -1.0]]])
    focal, size = center_losses(logits, sizes, targets, (1, 1, 1), ONE)
    heat, _ = center_targets(targets, (4, 4, 4), (1, 1, 1), ONE)
    expected = [0.0, 0.0]
    for b, d, h, w in torch.cartesian_prod(*[torch.arange(n) for n in (2, 4, 4, 4)]).tolist():
        p, y = logits[b, d, h, w].sigmoid().item(), heat[b, d, h, w].item()
        expected[b] -= (
            (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p**2 * math.log(1 - p)
        )
    assert focal.tolist() == pytest.approx(expected, rel=1e-4)
    assert size.tolist() == pytest.approx([abs(sizes[0, 1, 2, 3].item() - math.log(7)), 0])
