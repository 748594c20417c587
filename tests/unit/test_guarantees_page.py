"""The table of guarantees names tests that exist."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| (?P<promise>[^|]+) \| `(?P<file>tests/\S+\.py)::(?P<test>test_\w+)` \|", re.M
)


def rows():
    return list(ROW.finditer((ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")))


def test_every_promise_has_a_test_that_exists():
    missing = []
    for row in rows():
        file = ROOT / row["file"]
        source = file.read_text(encoding="utf-8") if file.is_file() else ""
        if f"def {row['test']}(" not in source:
            missing.append(f"{row['file']}::{row['test']}")
    assert not missing


def test_the_table_is_read_whole():
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    table = page.partition("| promise | test that holds it |")[2].partition("\n\n")[0]
    assert len(rows()) == table.count("\n") - 1 >= 20


def test_results_are_those_of_a_report(tmp_path):
    spec = importlib.util.spec_from_file_location("results", ROOT / "tools/guarantees_results.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    case = '<testcase classname="tests.unit.test_it" name="test_so[{}]">{}</testcase>'
    cases = case.format(1, "") + case.format(2, "<skipped/>") + case.format(3, "<failure/>")
    report = tmp_path / "report.xml"
    report.write_text(
        f'<testsuites><testsuite timestamp="2026-11-26T10:00">{cases}</testsuite></testsuites>'
    )
    page = "| promise | `tests/unit/test_it.py::test_so` | 3 | none | – |\n"
    filled = tool.fill(page, *tool.read_outcomes(report))
    assert filled.endswith("| none | 1 failed, 1 passed, 1 skipped, 2026-11-26 |\n")
    other = page.replace("test_so", "test_other")
    assert tool.fill(other, *tool.read_outcomes(report)) == other
