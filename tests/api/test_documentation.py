"""The pages that follow from the code are up to date, and every page can be found."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from tests.api.test_public_names import PUBLIC

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def command_pages():
    spec = importlib.util.spec_from_file_location(
        "command_pages", ROOT / "tools" / "command_pages.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_page_of_each_command_has_the_options_of_its_function(command_pages):
    parts = dict(command_pages.option_parts())
    assert {page.stem for page in (DOCS / "commands").glob("*.md")} == parts.keys()
    for name, options in parts.items():
        page = (DOCS / "commands" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(options), f"run tools/command_pages.py: {name}"


def test_each_command_is_in_the_list(command_pages):
    listed = (DOCS / "cli.md").read_text(encoding="utf-8")
    for name, _ in command_pages.option_parts():
        assert f"](commands/{name}.md)" in listed


def in_tables_of_contents(page):
    """Return the pages that the tables of contents of a page name, and theirs."""
    text = page.read_text(encoding="utf-8")
    found = {page}
    for table in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.M | re.S):
        for line in table.splitlines():
            if line and not line.startswith(":"):
                for below in page.parent.glob(f"{line}.md"):
                    found |= in_tables_of_contents(below)
    return found


def test_every_page_is_in_a_table_of_contents():
    pages = {page for page in DOCS.rglob("*.md") if "_build" not in page.parts}
    assert in_tables_of_contents(DOCS / "index.md") == pages


def test_reference_lists_every_public_package():
    listed = {
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^```\{public-names\} (\S+)$", page.read_text(), re.M)
    }
    assert PUBLIC.keys() - {"deepseek"} == listed
