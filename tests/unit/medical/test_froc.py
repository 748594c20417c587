import math
import time

import numpy as np
import pytest

from deepseek.errors import ConfigError, DataError
from deepseek.medical import Findings, Marks, match_marks
from deepseek.medical.froc import RATES

NOTHING = Findings(np.empty((0, 3)), np.empty(0))


def luna16_froc(findings, marks):
    """The evaluator of LUNA16 (noduleCADEvaluationLUNA16.py), step by step."""
    from sklearn.metrics import roc_curve

    truth, scores, left_out = [], [], []
    for scan, there in findings.items():
        said = marks.get(scan, Marks(np.empty((0, 3)), np.empty(0)))
        left = dict(enumerate(zip(said.centers_mm, said.scores, strict=True)))
        for center, diameter, excluded in zip(
            there.centers_mm, there.diameters_mm, there.is_excluded, strict=True
        ):
            radius_squared = ((10.0 if diameter < 0 else diameter) / 2) ** 2
            best = None
            for key, (place, score) in enumerate(zip(said.centers_mm, said.scores, strict=True)):
                if sum((a - b) ** 2 for a, b in zip(center, place, strict=True)) < radius_squared:
                    left.pop(key, None)
                    best = score if best is None else max(best, score)
            if not excluded:
                truth.append(1.0)
                scores.append(-1e9 if best is None else best)
                left_out.append(best is None)
        for _, score in left.values():
            truth.append(0.0)
            scores.append(score)
            left_out.append(False)
    kept = ~np.array(left_out)
    fpr, tpr, _ = roc_curve(np.array(truth)[kept], np.array(scores)[kept])
    num_found = sum(np.array(truth)[kept])
    return fpr * (kept.sum() - num_found) / len(findings), tpr * num_found / sum(truth)


def one(*centers, scores=None, diameter=6.0):
    if scores is None:
        return Findings(np.array(centers), np.full(len(centers), diameter))
    return Marks(np.array(centers), np.array(scores))


@pytest.mark.parametrize("digits", [9, 2])
def test_1018_scans_are_scored_as_the_evaluator_of_luna16_does(digits, lidc_findings, invent_marks):
    pytest.importorskip("sklearn")
    assert len(lidc_findings) == 1018
    marks = invent_marks(lidc_findings, digits, digits=digits)
    froc = match_marks(lidc_findings, marks)
    false, found = luna16_froc(lidc_findings, marks)
    expected = np.interp(RATES, false, found)
    np.testing.assert_allclose(froc.sensitivity(), expected, atol=1e-6)
    assert froc.cpm == pytest.approx(expected.mean(), abs=1e-6)
    assert 0.2 < froc.cpm < 0.8
    assert froc.num_doubles > 100
    assert froc.num_passed_over > 100


def test_average_precision_is_scikit_learn_s_times_what_was_found(lidc_findings, invent_marks):
    metrics = pytest.importorskip("sklearn.metrics")
    froc = match_marks(lidc_findings, invent_marks(lidc_findings, 4))
    hits = froc.hit_scores[np.isfinite(froc.hit_scores)]
    truth = np.repeat([1, 0], [len(hits), len(froc.false_scores)])
    expected = metrics.average_precision_score(truth, np.concatenate([hits, froc.false_scores]))
    found = expected * len(hits) / froc.num_findings
    assert froc.average_precision == pytest.approx(found, abs=1e-9)


def test_ten_thousand_scans_with_intervals_take_less_than_30_s(lidc_findings, invent_marks):
    scans = list(lidc_findings.values())
    findings = {str(i): scans[i % len(scans)] for i in range(10_000)}
    marks = invent_marks(findings, 5)
    start = time.process_time()
    froc = match_marks(findings, marks)
    cpm, each = froc.intervals()
    assert time.process_time() - start < 30
    assert cpm.value == pytest.approx(froc.cpm)
    assert cpm.low < cpm.value < cpm.high < cpm.low + 0.03
    assert len(each) == 7


def test_double_hits_excluded_findings_and_misses_by_hand():
    findings = {
        "a": one((0, 0, 0), (50, 0, 0)),
        "b": Findings(np.array([[0, 0, 0], [9, 9, 9]]), np.array([6.0, -1]), np.array([1, 1])),
        "c": NOTHING,
    }
    marks = {
        "a": one((0, 0, 2.9), (1, 0, 0), (0, 0, 3), scores=[0.3, 0.9, 0.5]),  # the last: at 3 mm
        "b": one((0, 1, 0), (9, 9, 4.5), (0, 0, 99), scores=[0.8, 0.8, 0.7]),
    }
    froc = match_marks(findings, marks)
    assert froc.hit_scores.tolist() == [0.9, -math.inf]
    assert (froc.num_doubles, froc.num_passed_over) == (1, 2)
    assert sorted(froc.false_scores) == [0.5, 0.7]
    false, found, thresholds = froc.curve()
    assert false.tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3])
    assert found.tolist() == [0, 0.5, 0.5, 0.5]
    assert thresholds.tolist() == [math.inf, 0.9, 0.7, 0.5]


def test_a_mark_between_two_findings_has_found_both():
    froc = match_marks({"a": one((0, 0, 0), (4, 0, 0))}, {"a": one((2, 0, 0), scores=[0.5])})
    assert froc.hit_scores.tolist() == [0.5, 0.5]
    assert len(froc.false_scores) == 0
    assert froc.cpm == 1.0


def test_no_marks_is_sensitivity_0():
    froc = match_marks({"a": one((0, 0, 0)), "b": NOTHING}, {})
    assert (froc.cpm, froc.average_precision) == (0.0, 0.0)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(DataError, match="1 scans have marks and no entry"):
        match_marks({"a": one((0, 0, 0))}, {"b": one((0, 0, 0), scores=[1.0])})
    with pytest.raises(DataError, match="none of the findings in 1 scans counts"):
        match_marks({"a": NOTHING}, {})
    with pytest.raises(ConfigError, match="2 marks with 1 scores"):
        one((0, 0, 0), (1, 1, 1), scores=[1.0])
    with pytest.raises(DataError, match="not finite"):
        one((0, 0, math.nan), scores=[1.0])
