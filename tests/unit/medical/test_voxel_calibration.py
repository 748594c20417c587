"""Probabilities that come true have no error; those of a class apart, whatever the volumes."""

import numpy as np
import pytest

from deepseek.deploy.report.calibration import calibrate
from deepseek.errors import ConfigError, DataError
from deepseek.medical.calibration import VoxelCalibration, calibration_section


def some_volumes(scale=1.0):
    rng = np.random.default_rng(0)
    for size in (12, 17, 9):
        logits = rng.normal(0, 2, (3, size, 10, 11))
        probs = np.exp(logits) / np.exp(logits).sum(0)
        draws = rng.random((size, 10, 11))
        labels = (draws > probs[0]).astype(int) + (draws > probs[0] + probs[1])
        said = probs**scale / (probs**scale).sum(0)
        yield said, labels


def count(scale=1.0, **settings):
    found = VoxelCalibration(3, **settings)
    for probs, labels in some_volumes(scale):
        found.update(probs, labels)
    return found


def test_probabilities_that_labels_are_drawn_by_come_true():
    true, sure = count(), count(3.0)
    for number in range(3):
        assert true.of_class(number).ece < 0.03
        assert sure.of_class(number).ece > 3 * true.of_class(number).ece


def test_it_is_the_calibration_of_each_class_against_the_rest():
    volumes = list(some_volumes())
    for number in range(3):
        said = np.concatenate([probs[number].ravel() for probs, _ in volumes])
        is_true = np.concatenate([(labels == number).ravel() for _, labels in volumes])
        expected, found = calibrate(said, is_true, 15), count().of_class(number)
        assert found.ece == pytest.approx(expected.ece)
        assert found.mce == pytest.approx(expected.mce)
        np.testing.assert_array_equal(found.count, expected.count)
        np.testing.assert_allclose(found.accuracy, expected.accuracy)


def test_voxels_without_a_label_and_unlikely_ones_do_not_count():
    probs, labels = next(some_volumes())
    found = VoxelCalibration(3)
    found.update(probs, np.full_like(labels, -100))
    assert np.isnan(found.of_class(1).ece)
    assert calibration_section(found, ["none", "a", "b"]).body == ""
    likely = count(least=0.5).of_class(1)
    assert not likely.count[:7].any()
    assert likely.count.sum() < count().of_class(1).count.sum()


def test_a_page_has_the_errors_of_each_class_but_the_first():
    body = calibration_section(count(), ["none", "a<b", "b"]).body
    assert body.count('<svg class="reliability"') == 2
    assert "a&lt;b" in body
    assert "a<b" not in body


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"probabilities \(2, 3, 3, 3\) and labels \(3, 3, 3\)"):
        VoxelCalibration(3).update(np.zeros((2, 3, 3, 3)), np.zeros((3, 3, 3)))
    with pytest.raises(DataError, match=r"not in 0\.\.1"):
        VoxelCalibration(1).update(np.full((1, 3, 3, 3), 2.0), np.zeros((3, 3, 3)))
    with pytest.raises(ConfigError, match="least=1"):
        VoxelCalibration(1, least=1)
