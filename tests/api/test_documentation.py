"""The pages that follow from the code are up to date, and every page can be found."""

import ast
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
from tests.api.test_public_names import PUBLIC

from deepseek.config.problems import Code

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCES = ROOT / "src"


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


def own_errors():
    """Return the classes of errors of the library, by their name."""
    bases, modules = {}, {}
    for file in SOURCES.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {base.id for base in node.bases if isinstance(base, ast.Name)}
                modules[node.name] = ".".join(file.relative_to(SOURCES).with_suffix("").parts)
    found = {"DeepSeekError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return {name: getattr(importlib.import_module(modules[name]), name) for name in found}


def test_every_class_of_errors_is_in_the_catalogue_with_its_exit_code_and_heading():
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+Error`[^|]*) \|([^|]*)\| (\d+)[^|]* \|", page, re.M)
    listed = {name: row for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    errors = own_errors()
    assert listed.keys() == errors.keys() - {"DeepSeekError"}
    for name, (_, also, code) in listed.items():
        kind = errors[name]
        above = {base.__name__ for base in kind.__mro__[1:]}
        assert set(re.findall(r"`(\w+)`", also)) <= above, name
        assert int(code) == kind.exit_code, name
        assert f"\n## {kind.anchor}\n" in page, name


def test_every_kind_of_a_problem_in_a_configuration_is_in_the_catalogue():
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    table = page.partition("| kind | means |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"^\| `([\w-]+)` \|", table, re.M))
    faults = {
        word
        for file in (SOURCES / "deepseek" / "config").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in ("Fault", "LocatedProblem")
        for word in [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        if isinstance(word, str) and re.fullmatch(r"[a-z]+(-[a-z]+)*", word)
    }
    assert listed == set(get_args(Code)) | faults
