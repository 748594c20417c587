from dataclasses import replace
from pathlib import Path

import pytest

from deepseek.deploy.optimization.candidate import BASE, Candidate
from deepseek.deploy.optimization.quality import Quality
from deepseek.deploy.optimization.result import (
    KEPT,
    REJECTED,
    Batch,
    Optimization,
    Row,
    choose,
    figures,
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
    return Row(candidate, status, "", time, (Batch(32, time),), quality, file_bytes, 1000, 0.1, 1.0)


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


def in_batches(candidate, *batches):
    """A row of (size, ms of a batch, times as fast as the original)."""
    made = tuple(
        Batch(size, Timing(ms / 1000, (0, 0), ratio, (ratio, ratio), 9, True), share)
        for (size, ms, ratio), share in zip(batches, (0.5, 1.0), strict=True)
    )
    return replace(row(candidate), batches=made)


def test_of_several_sizes_the_best_throughput_counts():
    small = in_batches(OPENVINO, (8, 2.0, 6.0), (32, 16.0, 2.5))
    large = in_batches(COMPILED, (8, 4.0, 2.0), (32, 12.0, 2.8))
    assert (small.fastest.size, large.fastest.size) == (8, 32)
    assert small.cost("throughput") == pytest.approx(1 / 3)  # 6 times half of the original's best
    assert choose([row(BASE), large, small], "throughput") == small
    assert "4,000/s in batches of 8 (6.00x)" in figures(small, "accuracy")
    assert small.to_json()["batch_size"] == 8


def test_the_front_of_batches_is_of_candidate_and_size():
    rows = (
        in_batches(OPENVINO, (8, 2.0, 6.0), (32, 16.0, 2.5)),
        in_batches(COMPILED, (8, 4.0, 2.0), (32, 6.0, 2.8)),
        replace(in_batches(BASE, (8, 1.0, 9.0), (32, 1.0, 9.0)), status=REJECTED),
    )
    found = Optimization(
        rows[0], rows, "latency", 0.005, "accuracy", 100, Path("best.xml"), Path("report.html")
    )
    front = [(each.candidate, batch.size) for each, batch in found.front_of_batches]
    assert front == [(OPENVINO, 8), (COMPILED, 32)]
