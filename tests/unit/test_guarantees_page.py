"""The table of guarantees names tests that exist."""

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
