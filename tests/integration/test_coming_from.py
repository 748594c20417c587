"""The programs that `docs/coming_from.md` shows run, resume, and are those that are timed."""

import importlib
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "benchmarks" / "coming_from"
PROGRAM_NAMES = sorted({path.stem for path in PROGRAMS.glob("*.py")} - {"digits_task"})
# of a package that a program needs beside the one it is about
ALSO = {"with_hf_trainer": "accelerate"}


@pytest.fixture
def comparison(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(PROGRAMS))
    yield importlib.import_module("coming_from")
    for name in ("coming_from", "digits_task", "measure", "with_deepseek"):
        sys.modules.pop(name, None)


def test_our_program_learns_and_a_resumed_run_is_equal(comparison, tmp_path):
    digits, task = (importlib.import_module(name) for name in ("with_deepseek", "digits_task"))
    images, labels = task.load_split()[1].tensors
    assert digits.train(tmp_path / "whole", 2) > 0.8
    digits.train(tmp_path / "parts", 1)
    digits.train(tmp_path / "parts", 2, resume=True)
    probs = digits.predict(tmp_path / "whole", images)
    assert (probs.argmax(1) == labels).float().mean() > 0.8
    assert torch.equal(probs, digits.predict(tmp_path / "parts", images))


@pytest.mark.long
@pytest.mark.parametrize("program", PROGRAM_NAMES)
def test_a_program_runs_resumes_and_is_as_good_as_ours(comparison, program, tmp_path):
    package = comparison.PROGRAMS[program][1]
    missing = [name for name in (package, ALSO.get(program, package)) if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {missing[0]} of the extra `bench`")
    whole = comparison.run(program, tmp_path / "whole", epochs=4, threads=1)
    assert whole["best_accuracy"] > 0.9
    assert whole["accuracy_of_file"] > 0.9
    difference = comparison.resume_difference(program, whole, tmp_path / "parts", 4, threads=1)
    if program in ("bare_loop", "with_deepseek"):
        assert difference == 0


def test_the_page_shows_every_program_that_is_measured(comparison):
    page = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\{literalinclude\} \.\./benchmarks/coming_from/(\w+)\.py", page))
    assert shown == {*comparison.PROGRAMS, "digits_task"}


def test_lines_of_code_leave_out_docstrings_comments_and_the_example(comparison):
    source = (
        '"""About."""\n\nimport os\n\n\ndef f():\n    """Do."""\n    # why\n    return os\n\n\n'
    )
    assert comparison.count_lines(source + 'if __name__ == "__main__":\n    f()\n') == 3
