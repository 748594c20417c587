"""Benchmarks, which no test runs, can be imported, and call what there is with arguments it takes.

Only calls of functions and classes by their name are looked at, and only of ours: those of methods
are left to `make check-benchmarks`.
"""

import argparse
import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
PROGRAMS = sorted(BENCHMARKS.glob("*.py"))
OURS = ("deepseek", *(program.stem for program in PROGRAMS))
UNKNOWN = object()


@pytest.fixture(autouse=True)
def benchmarks_are_found(monkeypatch):
    """As where one of them is the program; gone again afterwards, for their names are common."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for program in PROGRAMS:
        sys.modules.pop(program.stem, None)


def imported(name):
    """Return a module, or skip for a peer of ours that is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in OURS:
            raise
        pytest.skip(f"{missing} is not installed")


def is_ours(module):
    return module.partition(".")[0] in OURS


def bring_in(statement, names):
    """Add to `names` what an import inside a function brings."""
    if isinstance(statement, ast.ImportFrom) and is_ours(statement.module or ""):
        module = importlib.import_module(statement.module)
        found = {each.asname or each.name: getattr(module, each.name) for each in statement.names}
        names.update(found)
        return
    for each in statement.names:
        names[each.asname or each.name.partition(".")[0]] = UNKNOWN


def names_in(part, module):
    """Return what names mean in a function or class: of the module, where it does not bind them."""
    names = dict(vars(module))
    for node in ast.walk(part):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names[node.id] = UNKNOWN
        elif isinstance(node, ast.arg):
            names[node.arg] = UNKNOWN
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node is not part:
            names[node.name] = UNKNOWN
    for node in ast.walk(part):
        if isinstance(node, ast.Import | ast.ImportFrom):
            bring_in(node, names)
    return names


def called(expression, names):
    """Return the object that `f` or `module.f` names, or UNKNOWN."""
    if isinstance(expression, ast.Name):
        return names.get(expression.id, UNKNOWN)
    if isinstance(expression, ast.Attribute):
        owner = called(expression.value, names)
        if inspect.ismodule(owner) or inspect.isclass(owner):
            return getattr(owner, expression.attr, UNKNOWN)
    return UNKNOWN


def misfit(call, names):
    """Return why a call cannot be, or None."""
    function = called(call.func, names)
    if not callable(function) or not is_ours(getattr(function, "__module__", None) or ""):
        return None
    open_ended = any(isinstance(each, ast.Starred) for each in call.args)
    open_ended |= any(each.arg is None for each in call.keywords)
    given = [None for each in call.args if not isinstance(each, ast.Starred)]
    named = {each.arg: None for each in call.keywords if each.arg is not None}
    signature = inspect.signature(function)
    try:
        (signature.bind_partial if open_ended else signature.bind)(*given, **named)
    except TypeError as error:
        return f"line {call.lineno}: {ast.unparse(call.func)}: {error}"
    return None


def misfits(source, module):
    found = []
    for part in ast.parse(source).body:
        inner = isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        names = names_in(part, module) if inner else vars(module)
        calls = [node for node in ast.walk(part) if isinstance(node, ast.Call)]
        found += [why for call in calls if (why := misfit(call, names)) is not None]
    return found


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_benchmark_calls_what_there_is(program):
    module = imported(program.stem)
    assert misfits(program.read_text(encoding="utf-8"), module) == []


def test_a_call_that_does_not_fit_is_found():
    source = (
        "def one():\n"
        "    from deepseek.models import ModelEngine\n"
        "    ModelEngine('resnet20', depth=3)(1, 2)\n"
        "    ModelEngine.load()\n"
        "def two(markdown_table):\n"
        "    markdown_table(1, 2, 3, 4, 5)\n"
        "print(markdown_table())\n"
    )
    found = misfits(source, imported("measure"))
    assert [line.partition(": ")[0] for line in found] == ["line 4", "line 7"]


@pytest.mark.long
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_benchmark_says_what_it_takes(program):
    if '__name__ == "__main__"' not in program.read_text(encoding="utf-8"):
        pytest.skip("a part of others")
    imported(program.stem)
    done = subprocess.run(
        [sys.executable, program, "--help"], capture_output=True, text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout


def test_a_gpu_is_named_with_the_cpu_beside_it(monkeypatch):
    measure = importlib.import_module("measure")
    alone = measure.machine()
    monkeypatch.setattr(measure.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(measure.torch.cuda, "get_device_name", lambda: "NVIDIA abacus")
    found = measure.machine()
    assert (found.pop("chip"), found.pop("cpu")) == ("NVIDIA abacus", alone.pop("chip"))
    assert found == alone


@pytest.mark.parametrize(("device", "is_gpu"), [("auto", True), ("cuda", True), ("cpu", False)])
def test_speed_of_finance_is_of_the_device_that_was_asked_for(device, is_gpu, monkeypatch):
    speed = imported("finance_speed")
    monkeypatch.setattr(speed.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(speed.torch.cpu, "get_capabilities", dict)
    args = argparse.Namespace(device=device)
    assert speed.uses_gpu(args) == speed.has_bf16(args) == is_gpu
    assert speed.Clock(range(64), args).steps == (2, 12 if is_gpu else 4)
