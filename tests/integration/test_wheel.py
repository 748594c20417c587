"""The wheel is the same to the byte when it is built again, and holds the git tree."""

import hashlib
import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load_tool():
    spec = importlib.util.spec_from_file_location("build_wheel", ROOT / "tools" / "build_wheel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def test_a_wheel_that_is_not_the_tree_is_told_apart(tmp_path):
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("deepseek/same.py", "1")
        archive.writestr("deepseek/changed.py", "2")
        archive.writestr("deepseek/made.py", "3")
        archive.writestr("deepseek_framework-0.1.0.dist-info/RECORD", "")
    tracked = {"deepseek/same.py": b"1", "deepseek/changed.py": b"0", "deepseek/left_out.css": b""}
    assert tool.differences(wheel, tracked) == [
        "not in the wheel: deepseek/left_out.css",
        "not in git: deepseek/made.py",
        "differs: deepseek/changed.py",
    ]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_builds_are_equal_and_hold_what_git_holds(tmp_path):
    inside = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True)
    if inside.returncode:
        pytest.skip("not a git clone")
    commit = tool.current_commit()
    pytest.importorskip("setuptools", reason="the wheel is built without the network")
    wheels = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        wheels.append(tool.build(tmp_path / name, commit, "--no-build-isolation"))
    first, second = (hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels)
    assert first == second
    assert tool.differences(wheels[0], tool.tracked_files(commit)) == []
