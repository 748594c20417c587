import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from deepseek.errors import ConfigError
from deepseek.planner import Cluster, find_gpu
from deepseek.planner.model_source import find_model
from deepseek.planner.page import render_page, write_page
from deepseek.planner.pictures import draw_memory, draw_timeline
from deepseek.planner.plan_report import PlanReport
from deepseek.planner.scaling import plan_sizes
from deepseek.planner.search import search
from deepseek.planner.search_space import SearchSpace
from deepseek.planner.timeline import draw_up


def make_report(name, num_gpus, batch, **space):
    source, cluster = find_model(name), Cluster(find_gpu("h100"), num_gpus)
    space = SearchSpace(**space)
    found = search(source.shape, cluster, batch, space)
    return PlanReport(source, cluster, batch, space, found, 1e11)


@pytest.fixture(scope="module")
def report():
    return make_report("gpt3-175b", 128, 512)


def test_the_page_is_whole_and_asks_for_nothing(report):
    page = render_page(report)
    assert "Content-Security-Policy" in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|<script", page)
    for title in ("Timeline of a step", "Memory by pipeline rank", "Scaling", "Candidates"):
        assert f"<h2>{title}</h2>" in page
    pictures = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(pictures) == 4
    for picture in pictures:
        ElementTree.fromstring(picture)  # well formed


def test_hostile_names_stay_text(report):
    source = find_model("name=<b>x</b>,layers=2,dim=64,heads=4,vocab=100,seq=128")
    cluster, space = Cluster(find_gpu("h100"), 2), SearchSpace()
    found = search(source.shape, cluster, 8, space)
    assert "<b>" not in render_page(PlanReport(source, cluster, 8, space, found))


def test_boxes_lie_in_the_picture_and_do_not_overlap(report):
    best = report.found.best
    passes = draw_up(report.shape, report.cluster, best.plan, best.prediction)
    picture = ElementTree.fromstring(
        re.search(r"<svg.*?</svg>", draw_timeline(passes, best.plan), re.S)[0]
    )
    width, height = (float(n) for n in picture.get("viewBox").split()[2:])
    rows = {}
    for box in picture.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (float(box.get(name)) for name in ("x", "y", "width", "height"))
        assert x >= 0
        assert y >= 0
        assert x + w <= width + 0.1
        assert y + h <= height
        if box.get("class").startswith("box"):
            rows.setdefault(y, []).append((x, x + w))
    assert len(rows) == min(best.plan.pp, 16)
    for boxes in rows.values():
        boxes.sort()
        assert all(a[1] <= b[0] + 0.11 for a, b in pairwise(boxes))


def test_bars_are_as_tall_as_their_bytes(report):
    prediction = report.found.best.prediction
    text = draw_memory(prediction, report.limit_bytes, report.cluster.gpu.memory_bytes)
    picture = ElementTree.fromstring(re.search(r"<svg.*?</svg>", text, re.S)[0])
    bars = list(picture.iter("{http://www.w3.org/2000/svg}rect"))
    num_ranks = len(prediction.memory)
    assert len(bars) == num_ranks * len(prediction.memory[0])
    tall = [float(bar.get("height")) for bar in bars]
    values = [value for memory in prediction.memory for value in memory.values()]
    scale = sum(tall) / sum(values)
    assert all(abs(t - v * scale) < 0.2 for t, v in zip(tall, values, strict=True))


def test_scaling_is_planned_up_to_16384_gpus_and_speed_falls_in_the_end(report):
    points = plan_sizes(report.shape, report.cluster, 16384, report.space)
    assert points[-1].num_gpus == 16384
    found = {p.num_gpus: p.best for p in points if p.best}
    assert found[16384].prediction.step_s < found[128].prediction.step_s
    rates = [best.prediction.tokens_per_s_per_gpu for best in found.values()]
    assert rates[-1] < max(rates)


def test_the_page_says_what_is_missing_where_nothing_fits():
    page = render_page(make_report("llama3-70b", 8, 64, offload="none"))
    assert "nothing fits" in page


def test_the_page_says_what_waits_on_the_host():
    page = render_page(make_report("llama3-70b", 8, 64))
    assert "offload parameters" in page
    assert "GiB of the memory of a node with 8 GPUs" in page
    assert "copies to and from the host" in page


def test_the_page_is_written_where_it_can_be(report, tmp_path):
    write_page(report, tmp_path / "plan.html")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.html"]
    for path in (tmp_path / "plan.txt", tmp_path / "absent" / "plan.html"):
        with pytest.raises(ConfigError, match="--html"):
            write_page(report, path)
