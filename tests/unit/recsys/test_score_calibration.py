"""Calibrations find the map that made the labels."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from deepseek.errors import ConfigError, DataError
from deepseek.recsys.score_calibration import ScoreCalibration, pool_adjacent


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=20_000)
    return logits, (rng.random(20_000) < sigmoid(0.5 * logits - 1)).astype(int)


def test_platt_finds_slope_and_shift(rows):
    logits, labels = rows
    found = ScoreCalibration("platt").fit(logits, labels)([0.0, 2.0, -2.0])
    assert found == pytest.approx(sigmoid(np.array([-1.0, 0.0, -2.0])), abs=0.015)
    fitted = LogisticRegression(C=1e9).fit(logits[:, None], labels)
    want = fitted.predict_proba([[0.0], [2.0], [-2.0]])[:, 1]
    assert found == pytest.approx(want, abs=1e-3)


def test_temperature_divides_logits(rows):
    logits, _ = rows
    labels = (np.random.default_rng(1).random(len(logits)) < sigmoid(logits / 2)).astype(int)
    fitted = ScoreCalibration("temperature").fit(logits, labels)
    assert fitted.temperature == pytest.approx(2, rel=0.05)
    assert fitted([0.0])[0] == 0.5


def test_isotonic_regression_is_the_best_function_that_never_falls(rows):
    logits, labels = (each[:500] for each in rows)
    _, values = pool_adjacent(logits, labels)
    assert (np.diff(values) > 0).all()
    want = IsotonicRegression().fit_transform(logits, labels)
    assert np.unique(want) == pytest.approx(values)
    fitted = ScoreCalibration("isotonic").fit(*rows)
    assert fitted([0.0, 2.0]) == pytest.approx(sigmoid(np.array([-1.0, 0.0])), abs=0.05)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ConfigError, match="kind='x'"):
        ScoreCalibration("x")
    with pytest.raises(DataError, match="2 of them 1"):
        ScoreCalibration().fit([0.1, 0.2], [1, 1])
    with pytest.raises(DataError, match="not fitted"):
        ScoreCalibration("isotonic")([0.1])
    apart = ScoreCalibration("platt").fit([-1.0, 1.0], [0, 1])([-1.0, 1.0])
    assert 0.2 < apart[0] < apart[1] < 0.8  # two rows make nothing certain
