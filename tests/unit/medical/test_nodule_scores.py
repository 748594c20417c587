import numpy as np
import pytest
import torch

from deepseek.errors import ConfigError, DataError
from deepseek.medical.blob_detector import find_blobs
from deepseek.medical.nodule_cubes import NoduleCubes, read_nodule_cubes
from deepseek.medical.nodule_features import nodule_features
from deepseek.medical.nodule_scores import (
    PENALTIES,
    auc,
    auc_interval,
    deep_features,
    fit_scores,
    form_features,
    malignancy_labels,
)
from deepseek.medical.threshold_segmentation import largest_bright_part
from deepseek.models import UNet3D

pytest.importorskip("scipy")


def ball(radius, center=(15, 15, 15), size=31, stretch=1.0):
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"))
    away = grid - np.array(center).reshape(3, 1, 1, 1)
    away = away / np.array([stretch, 1, 1]).reshape(3, 1, 1, 1)
    return (away**2).sum(0) <= radius**2


def test_form_is_that_of_balls_and_ellipsoids():
    small, large = (
        nodule_features(0.6 * mask.astype(np.float32), mask) for mask in (ball(5), ball(10))
    )
    assert np.exp(small["log_volume"]) == pytest.approx(4 / 3 * np.pi * 125, rel=0.03)
    assert np.exp(large["log_area"]) == pytest.approx(4 * np.pi * 100, rel=0.05)
    assert small["sphericity"] == pytest.approx(1, abs=0.06)
    assert small["elongation"] == pytest.approx(1, abs=0.02)
    long = ball(5, stretch=2)
    found = nodule_features(long.astype(np.float32), long)
    assert found["elongation"] == pytest.approx(0.5, abs=0.03)
    assert found["sphericity"] < small["sphericity"]
    coarse = nodule_features(0.6 * ball(5).astype(np.float32), ball(5), spacing_mm=2.0)
    assert coarse["log_volume"] == pytest.approx(small["log_volume"] + np.log(8))
    assert coarse["sphericity"] == pytest.approx(small["sphericity"])


def test_density_and_surroundings_are_those_of_the_voxels():
    mask = ball(6)
    voxels = np.where(mask, 0.7, 0.1).astype(np.float32)
    found = nodule_features(voxels, mask)
    assert found["mean"] == pytest.approx(0.7)
    assert found["std"] == pytest.approx(0, abs=1e-6)
    assert found["shell_2_4_mean"] == pytest.approx(0.1)
    assert found["shell_-2_0_mean"] == pytest.approx(0.7)
    assert found["share_above_065"] == 1
    with pytest.raises(DataError, match="empty"):
        nodule_features(voxels, np.zeros_like(mask))


def test_features_are_finite_for_a_single_voxel():
    mask = ball(0)
    assert np.isfinite(list(nodule_features(mask.astype(np.float32), mask).values())).all()


def test_a_score_that_is_missing_does_not_count():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 4))
    scores = np.stack([features @ [1, -2, 0, 0.5] + 3, features @ [0, 1, 1, 0]], 1)
    scores[:20, 0] = np.nan
    model = fit_scores(features, scores, penalty=1e-6)
    known = features @ [1, -2, 0, 0.5] + 3
    assert model.predict(features)[:, 0] == pytest.approx(known, abs=1e-5)
    alone = fit_scores(features, scores[:, 1:], penalty=1e-6)
    assert model.predict(features)[:, 1] == pytest.approx(alone.predict(features)[:, 0])


def test_the_penalty_is_that_of_ridge_regression():
    rng = np.random.default_rng(1)
    features, score = rng.normal(size=(30, 3)), rng.normal(size=30)
    scaled = (features - features.mean(0)) / features.std(0)
    weights = np.linalg.solve(scaled.T @ scaled + 3 * np.eye(3), scaled.T @ (score - score.mean()))
    model = fit_scores(features, score[:, None], penalty=3)
    assert model.weights[:, 0] == pytest.approx(weights)
    each = [fit_scores(features, score[:, None], 3 * share).weights for share in PENALTIES]
    mean = fit_scores(features, score[:, None]).weights
    assert mean == pytest.approx(np.mean(each, 0))
    assert model.offsets[0] == pytest.approx(score.mean())


@pytest.mark.parametrize(
    ("features", "scores", "message"),
    [
        (np.ones((3, 2)), np.ones((4, 1)), r"features \(3, 2\) and scores \(4, 1\)"),
        (np.full((3, 2), np.inf), np.ones((3, 1)), "not finite"),
        (np.ones((3, 2)), np.array([[1, np.nan]] * 3), "score 1 is known of 0 nodules"),
    ],
)
def test_what_does_not_fit_is_refused(features, scores, message):
    with pytest.raises(DataError, match=message):
        fit_scores(features, scores)


def test_the_area_under_the_curve_counts_pairs():
    scores, labels = np.array([0.1, 0.4, 0.35, 0.8, 0.4]), np.array([0, 0, 1, 1, 1])
    assert auc(scores, labels) == pytest.approx((1 + 0 + 1 + 1 + 1 + 0.5) / 6)
    assert np.isnan(auc(scores, np.ones(5)))
    interval = auc_interval(scores, np.array([0, np.nan, 1, 1, 0]), list("abcde"))
    assert interval.low <= interval.value <= interval.high
    given = {"malignancy": np.array([1, 2, 3, 4, 5, np.nan])}
    assert malignancy_labels(given)[[0, 1, 3, 4]].tolist() == [0, 0, 1, 1]
    assert np.isnan(malignancy_labels(given)[[2, 5]]).all()


def test_deep_features_are_of_the_nodule():
    torch.manual_seed(0)
    model = UNet3D(1, 2, (4, 8), blocks=1).eval()
    masks = np.stack([ball(5), ball(3, center=(20, 8, 12))]).astype(np.uint8)
    voxels = (0.6 * masks + 0.1).astype(np.float32)
    cubes = NoduleCubes(voxels, masks, ("a", "b"), {})
    found = deep_features(model, cubes, (16, 16, 16))
    assert found.shape == (2, 8)
    assert not np.allclose(found[0], found[1])
    with pytest.raises(ConfigError, match=r"patch=\[40, 40, 40\]"):
        deep_features(model, cubes, (40, 40, 40))


def test_blobs_are_found_with_their_places_in_mm():
    rng = np.random.default_rng(0)
    voxels = 0.1 + 0.5 * ball(5, center=(9, 20, 15), stretch=0.5) + 0.02 * rng.random((31, 31, 31))
    marks = find_blobs(voxels.astype(np.float32), spacing_mm=(2.0, 1.0, 1.0))
    assert marks.centers_mm[0] == pytest.approx([18, 20, 15], abs=1.5)
    assert (np.diff(marks.scores) <= 0).all()
    assert len(find_blobs(np.zeros((8, 8, 8), np.float32)).scores) == 0


def test_the_largest_bright_part_is_one():
    voxels = (ball(6, center=(8, 8, 8)) | ball(3, center=(24, 24, 24))).astype(np.float32)
    assert (largest_bright_part(voxels) == ball(6, center=(8, 8, 8))).all()
    assert not largest_bright_part(np.zeros((4, 4, 4))).any()


@pytest.mark.long
def test_form_and_density_beat_the_volume_on_real_nodules(real_data):
    cubes = read_nodule_cubes(real_data / "lidc_nodules")
    labels, folds, form = malignancy_labels(cubes.scores), cubes.folds(), form_features(cubes)
    assert (labels == 1).sum() + (labels == 0).sum() == 93
    assert auc(np.log(cubes.diameters_mm)[labels >= 0], labels[labels >= 0]) == pytest.approx(
        0.782, abs=0.001
    )
    target = np.clip(cubes.scores["malignancy"] - 3, -1, 1)[:, None]
    said = np.zeros(len(cubes))
    for fold in range(5):
        rest = folds != fold
        said[~rest] = fit_scores(form[rest], target[rest]).predict(form[~rest])[:, 0]
    assert auc(said, labels) > 0.80
