"""Lines of Chinese pages are joined as they are read; long names in tables may break."""

import importlib.util
from pathlib import Path

import pytest

nodes = pytest.importorskip("docutils.nodes", reason="needs the extra `docs`")
EXTENSION = Path(__file__).parents[2] / "docs" / "extensions" / "line_breaks.py"


@pytest.fixture(scope="module")
def line_breaks():
    spec = importlib.util.spec_from_file_location("line_breaks", EXTENSION)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def document_of(*children):
    document = nodes.document(None, None)
    document += nodes.paragraph("", "", *children)
    return document


def test_a_break_is_a_space_beside_letters_only(line_breaks):
    lines = ["训练", "评估，", "GPU", "上的", "torch", "（可选）"]
    children = [nodes.Text(lines[0])]
    for line in lines[1:]:
        children += [nodes.Text("\n"), nodes.Text(line)]
    document = document_of(*children)
    line_breaks.join_lines(document)
    assert document.astext() == "训练评估，GPU\n上的\ntorch（可选）"


def test_long_names_in_cells_are_marked_and_no_others(line_breaks):
    short, long = nodes.literal("", "trainer.lr"), nodes.literal("", "tests/unit/" + "a" * 40)
    outside = nodes.literal("", "a" * 60)
    cell = nodes.entry("", nodes.paragraph("", "", short, long))
    document = document_of(outside)
    document += cell
    line_breaks.mark_long_names(document)
    assert [name["classes"] for name in (short, long, outside)] == [[], ["long"], []]
