from pathlib import Path

import pytest

from deepseek.deploy.optimization.candidate import BASE, Candidate
from deepseek.deploy.optimization.quality import Quality
from deepseek.deploy.optimization.result import (
    KEPT,
    REJECTED,
    Optimization,
    Row,
    choose,
    find_front,
)
from deepseek.deploy.optimization.turns import Timing

OPENVINO, COMPILED = Candidate("openvino", "bf16"), Candidate("compiled", "bf16")


def timing(ratio, spread=0.0):
    low, high = ratio * (1 - spread), ratio * (1 + spread)
    return Timing(1 / ratio, (1 / ratio, 1 / ratio), ratio, (low, high), 9, True)


def row(candidate, ratio=1.0, drop=0.0, file_bytes=100, status=KEPT, spread=0.0):
    quality = Quality(0.9 - drop, drop, (drop, drop))
    time = timing(ratio, spread)
    return Row(candidate, status, "", time, time, 32, quality, file_bytes, 1000, 0.1, 1.0)


@pytest.mark.parametrize("target", ["latency", "throughput"])
def test_the_fastest_is_chosen(target):
    rows = [row(BASE), row(COMPILED, 3.0), row(OPENVINO, 4.0)]
    assert choose(rows, target).candidate == OPENVINO


def test_what_is_not_kept_is_not_chosen():
    rows = [row(BASE), row(OPENVINO, 4.0, status=REJECTED)]
    assert choose(rows, "latency").candidate == BASE


def test_of_two_that_do_not_differ_the_simpler_is_chosen():
    rows = [row(BASE), row(COMPILED, 3.96, spread=0.02), row(OPENVINO, 4.0, spread=0.02)]
    assert choose(rows, "latency").candidate == COMPILED


def test_a_difference_beyond_the_error_counts_however_small():
    rows = [row(BASE), row(COMPILED, 3.96), row(OPENVINO, 4.0)]
    assert choose(rows, "latency").candidate == OPENVINO


def test_a_large_error_does_not_excuse_a_slow_one():
    rows = [row(BASE), row(COMPILED, 3.6, spread=0.5), row(OPENVINO, 4.0, spread=0.5)]
    assert choose(rows, "latency").candidate == OPENVINO


def test_the_smallest_file_is_chosen_for_size():
    rows = [row(BASE), row(COMPILED, 4.0, file_bytes=100), row(OPENVINO, 0.5, file_bytes=26)]
    assert choose(rows, "size").candidate == OPENVINO


def test_the_front_has_what_no_other_beats_in_everything():
    worse = Candidate("onnxruntime")
    rows = [
        row(BASE), row(COMPILED, 3.0, file_bytes=100), row(OPENVINO, 4.0, drop=0.01, file_bytes=50),
        row(worse, 2.0, file_bytes=100),
    ]  # fmt: skip
    assert {each.candidate for each in find_front(rows)} == {COMPILED, OPENVINO}


def test_in_words_each_candidate_has_a_line_and_its_reason():
    rows = (
        row(BASE), row(OPENVINO, 4.0, drop=0.0012),
        Row(Candidate("aoti"), "failed", "crashed with SIGILL"),
    )  # fmt: skip
    found = Optimization(
        rows[1], rows, "latency", 0.005, "accuracy", 100, Path("best.xml"), Path("report.html")
    )
    lines = found.describe().splitlines()
    assert "(4.00x)" in lines[1]
    assert "accuracy 0.8988 (-0.12 points)" in lines[1]
    assert lines[2].endswith("failed: crashed with SIGILL")
    assert lines[3] == "best for latency: openvino bf16, best.xml"
