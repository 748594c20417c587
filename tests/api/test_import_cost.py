"""What an import costs and does: no torch, no sockets, no processes, no files."""

import subprocess
import sys

import pytest

AUDIT = """
import sys
seen = []
def audit(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen",
                 "os.fork", "os.posix_spawn", "os.exec", "os.system", "os.mkdir", "os.remove",
                 "os.rename", "os.rmdir", "urllib.Request"):
        seen.append((event, str(args)[:200]))
    if event == "open" and isinstance(args[2], int):
        import os
        if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append((event, str(args)[:200]))
sys.dont_write_bytecode = True
sys.addaudithook(audit)
"""
LIGHT = [
    "deepseek",
    "deepseek.errors",
    "deepseek.registry",
    "deepseek.config",
    "deepseek.cli.main",
    "deepseek.doctor",
    "deepseek.bench",
    "deepseek.planner",
    "deepseek.reproduce",
    "deepseek.launch.supervisor",
    "deepseek.launch.manifest_rules",
]


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", LIGHT)
def test_import_does_nothing_to_the_machine_and_brings_no_torch(name):
    code = f"{AUDIT}\nimport {name}\nprint(seen, 'torch' in sys.modules, 'numpy' in sys.modules)"
    assert python(code).strip() == "[] False False"


def test_the_audit_sees_what_it_is_for():
    code = f"{AUDIT}\nimport os, tempfile\nopen(os.devnull, 'w')\nprint(len(seen))"
    assert int(python(code)) == 1


def test_a_process_that_measures_a_candidate_holds_no_trainer():
    name = "deepseek.deploy.optimization.trial"
    code = (
        f"import {name}, sys; print([m for m in sys.modules if m.startswith('deepseek.trainer')])"
    )
    assert python(code).strip() == "[]"
