import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from deepseek.doctor import CHECKS, Finding, Verdict, as_json, catalogue, examine, exit_code
from deepseek.doctor.finding import check
from deepseek.doctor.machine import Machine, run_command
from deepseek.doctor.table import print_table, summary

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "doctor.md"
FINDINGS = [
    Finding("a.b", Verdict.PROBLEM, "it is [broken]", "mend it"),
    Finding("c.d", Verdict.OK, "fine", value={"x": 1}),
    Finding("e.f", Verdict.NOTE, "so it is"),
    Finding("g.h", Verdict.NOTE, "and so"),
]


def test_names_of_checks_are_unique_and_stable_in_form():
    names = [entry.name for entry in CHECKS]
    assert len(names) == len(set(names)) >= 50
    assert all(re.fullmatch(r"[a-z]+\.[a-z0-9_]+", name) for name in names)


def test_every_check_is_tested_in_a_file_of_this_folder():
    source = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    assert [entry.name for entry in CHECKS if f'"{entry.name}"' not in source] == []


def test_catalogue_of_the_page_is_that_of_the_code():
    assert catalogue(CHECKS) in PAGE.read_text(encoding="utf-8")


def test_cells_of_the_catalogue_do_not_break_the_table():
    rows = catalogue(CHECKS).splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)


def test_a_machine_of_which_nothing_is_known_is_examined_to_the_end(describe):
    found = examine(describe())
    assert not [finding for finding in found if "itself failed" in finding.what]
    assert exit_code(found) == 0


def test_this_machine_is_examined_without_a_check_that_breaks():
    found = examine(Machine())
    assert not [finding for finding in found if "itself failed" in finding.what]
    json.dumps(as_json(found))


def test_check_that_breaks_is_a_warning_and_the_others_go_on(describe):
    @check("a.broken", asks="x", mend="y")
    def broken(machine):
        raise OSError("no luck")
        yield

    (found,) = broken(describe())
    assert found.verdict is Verdict.WARNING
    assert found.name == "a.broken"
    assert found.what == "this check itself failed: OSError: no luck"


def test_table_shows_the_worst_last_and_how_many_there_are():
    console = Console(file=io.StringIO(), width=80)
    print_table(FINDINGS, console)
    text = console.file.getvalue()
    assert text.index("c.d") < text.index("e.f") < text.index("a.b")
    assert "it is [broken]" in text
    assert "mend: mend it" in text
    assert text.rstrip().endswith("1 problem, 2 notes, 1 ok.")
    assert summary([]) == "nothing found."


def test_json_has_names_verdicts_and_values():
    facts = json.loads(json.dumps(as_json(FINDINGS)))
    assert facts["verdict"] == "problem"
    assert facts["findings"][1] == {
        "name": "c.d",
        "verdict": "ok",
        "what": "fine",
        "mend": "",
        "value": {"x": 1},
    }


@pytest.mark.parametrize(
    ("findings", "code"), [(FINDINGS, 1), (FINDINGS[1:], 0), ([], 0)], ids=["bad", "good", "none"]
)
def test_only_a_problem_changes_the_exit_code(findings, code):
    assert exit_code(findings) == code


def test_import_brings_neither_torch_nor_what_is_heavy():
    heavy = "{'torch', 'numpy', 'pydantic', 'deepseek.config'}"
    code = f"import sys, deepseek.doctor, deepseek.cli.doctor; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_command_is_cut_off_after_its_time_and_a_missing_one_is_none():
    slow = run_command(["python3", "-c", "import time; time.sleep(60)"], 0.2)
    assert slow is not None
    assert slow.code is None
    assert run_command(["no-such-command"], 1.0) is None


def test_command_that_several_checks_ask_runs_once(describe):
    machine = describe()
    calls = []
    machine.command = lambda words, timeout_s: calls.append(words)
    machine.output("a", "b")
    machine.output("a", "b")
    assert calls == [("a", "b")]


@pytest.mark.parametrize(
    ("files", "env", "inside"),
    [
        ({}, {}, None),
        ({"/.dockerenv": ""}, {}, "container"),
        ({"/proc/1/cgroup": "0::/docker/abc"}, {}, "container"),
        ({"/.dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "x"}, "kubernetes"),
    ],
)
def test_containers_are_told_from_machines(describe, files, env, inside):
    assert describe(files=files, env=env).inside() == inside
