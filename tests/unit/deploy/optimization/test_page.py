import re
from dataclasses import replace

import pytest

from deepseek.deploy.optimization.candidate import BASE, Candidate
from deepseek.deploy.optimization.page import _staircase, write_page
from deepseek.deploy.optimization.quality import Quality
from deepseek.deploy.optimization.result import FAILED, KEPT, REJECTED, Batch, Optimization, Row
from deepseek.deploy.optimization.turns import Timing


@pytest.fixture
def result(tmp_path):
    def row(candidate, ratio, drop, file_bytes, status=KEPT, reason=""):
        time = Timing(0.01 / ratio, (0.009 / ratio, 0.011 / ratio), ratio, (ratio, ratio), 9, True)
        quality = Quality(0.9 - drop, drop, (drop - 0.001, drop + 0.001))
        return Row(
            candidate, status, reason, time, (Batch(32, time),), quality, file_bytes, 500_000_000,
            0.5, 3.0,
        )  # fmt: skip

    rows = (
        row(BASE, 1.0, 0.0, 1_100_000),
        replace(
            row(Candidate("openvino", "bf16"), 4.7, -0.0008, 630_000), fused=("20 norms folded",)
        ),
        row(Candidate("openvino", "int8"), 6.1, 0.0031, 440_000),
        row(Candidate("onnxruntime", "int8"), 3.0, 0.21, 430_000, REJECTED, "drops"),
        row(Candidate("compiled", "bf16"), 2.5, 0.0003, 1_100_000),
        Row(Candidate("aoti", source="<b>x</b>"), FAILED, "crashed with <SIGILL>"),
    )  # fmt: skip
    return Optimization(
        rows[2], rows, "latency", 0.005, "accuracy", 1000, tmp_path / "best.xml",
        tmp_path / "report.html", ("the times are rough",),
    )  # fmt: skip


BODY = {"machine": {"processor": "some"}, "versions": {"torch": "2.14"}}


def test_the_page_has_the_choice_the_front_and_every_candidate(result):
    page = write_page(result, BODY).read_text()
    assert "<h1>openvino int8</h1>" in page
    assert page.count("<figure") == 4
    assert page.count("<title>3 ✓ openvino int8</title>") == 4
    # the one that lost a fifth of its accuracy would make the pictures flat
    assert "4 onnxruntime int8</title>" not in page
    assert "1 with a drop beyond 2.50%" in page.replace("\u202f", "")
    rows = re.findall(r"<tr><th scope=\"row\">(\d) ", page)
    assert rows == ["1", "2", "3", "4", "5", "6"]
    assert "-0.31 points (-0.41 to -0.21)" in page
    assert "the times are rough" in page
    assert "<td>20 norms folded</td>" in page


def test_names_and_reasons_cannot_be_markup(result):
    page = write_page(result, BODY).read_text()
    assert "<SIGILL>" not in page
    assert "<b>x</b>" not in page
    assert "crashed with &lt;SIGILL&gt;" in page


def test_the_line_of_a_picture_joins_what_no_other_beats():
    places = [(1.0, 0.3), (2.0, 0.1), (3.0, 0.2), (4.0, 0.0)]
    assert _staircase(places, is_rising=False) == [
        (1.0, 0.3), (2.0, 0.3), (2.0, 0.1), (4.0, 0.1), (4.0, 0.0),
    ]  # fmt: skip
    assert _staircase(places, is_rising=True) == [(4.0, 0.0)]


def test_several_sizes_of_batches_have_a_picture_and_a_table(result):
    assert "Batch sizes" not in write_page(result, BODY).read_text()

    def with_sizes(row):
        if row.one is None:
            return row
        small = Batch(8, replace(row.one, seconds=row.one.seconds / 2))
        return replace(row, batches=(small, *row.batches))

    rows = tuple(map(with_sizes, result.rows))
    page = write_page(replace(result, best=rows[2], rows=rows), BODY).read_text()
    assert page.count("<figure") == 5
    assert "<title>3 openvino int8, 8 samples</title>" in page
    assert "rejected" not in page.split('id="batches"')[1].split("</section>")[0]
    assert page.count("on the front</td>") >= 1
