"""Scores of MONAI beside ours. Its import alone takes ten seconds, hence long tests."""

import numpy as np
import pytest
import torch

from deepseek.medical import dice_by_class, hausdorff_mm, match_marks
from deepseek.medical.froc import RATES

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def blobs(seed, shape=(18, 20, 16), num_classes=3):
    """Labels of smooth random regions."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(num_classes, 6, 5, 4))
    fine = coarse.repeat(shape[0] // 6, 1).repeat(shape[1] // 5, 2).repeat(shape[2] // 4, 3)
    return fine.argmax(0)


def one_hot(labels, num_classes=3):
    return np.eye(num_classes, dtype=np.float32)[labels].transpose(3, 0, 1, 2)[None]


@pytest.mark.parametrize("seed", range(4))
def test_dice_is_monai_s(seed):
    monai = pytest.importorskip("monai.metrics")
    found, known = blobs(seed), blobs(seed + 100)
    known[known == 1] = 0 if seed == 3 else 1  # a class that is not there is still 0 if found
    expected = monai.compute_dice(
        torch.from_numpy(one_hot(found)), torch.from_numpy(one_hot(known)), ignore_empty=False
    )
    np.testing.assert_allclose(dice_by_class(found, known, 3), expected[0], atol=1e-6)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2.5, 0.7, 0.7)])
@pytest.mark.parametrize("percentile", [95.0, 100.0])
def test_the_hausdorff_distance_is_monai_s(spacing, percentile):
    monai = pytest.importorskip("monai.metrics")
    for seed in range(3):
        found, known = blobs(seed), blobs(seed + 100)
        expected = monai.compute_hausdorff_distance(
            torch.from_numpy(one_hot(found)), torch.from_numpy(one_hot(known)),
            include_background=True, percentile=percentile, spacing=spacing,
        )  # fmt: skip
        for number in range(3):
            distance = hausdorff_mm(found == number, known == number, spacing, percentile)
            assert distance == pytest.approx(float(expected[0, number]), rel=1e-6)


def test_the_curve_is_monai_s(lidc_findings, invent_marks):
    froc_of = pytest.importorskip("monai.metrics.froc")
    froc = match_marks(lidc_findings, invent_marks(lidc_findings, 3))
    hits = np.where(np.isfinite(froc.hit_scores), froc.hit_scores, 0.0)
    false, found = froc_of.compute_froc_curve_data(
        froc.false_scores, hits, froc.num_findings, froc.num_scans
    )
    score = froc_of.compute_froc_score(false, found, RATES)
    assert froc.cpm == pytest.approx(score, abs=1e-6)
