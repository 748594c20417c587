import numpy as np
import pytest

from deepseek.deploy.report.calibration import calibrate


def test_error_of_a_case_computed_by_hand():
    confidence = np.array([0.9, 0.9, 0.6, 0.6])
    correct = np.array([True, False, True, True])
    result = calibrate(confidence, correct, num_bins=2)
    assert result.count.tolist() == [0, 4]
    assert result.ece == pytest.approx(0.0)
    result = calibrate(confidence, correct, num_bins=10)
    assert result.ece == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    assert result.mce == pytest.approx(0.4)


def test_a_bin_holds_its_upper_edge_but_not_its_lower():
    result = calibrate(np.array([0.0, 0.5, 1.0]), np.array([True, True, True]), num_bins=2)
    assert result.count.tolist() == [2, 1]


def test_bins_equal_those_of_scikit_learn():
    calibration = pytest.importorskip("sklearn.calibration")
    rng = np.random.default_rng(0)
    confidence = rng.random(2000)
    correct = rng.random(2000) < confidence**2
    result = calibrate(confidence, correct)
    accuracy, mean = calibration.calibration_curve(correct, confidence, n_bins=15)
    filled = result.count > 0
    assert result.accuracy[filled] == pytest.approx(accuracy)
    assert result.confidence[filled] == pytest.approx(mean)
