"""Machines that a test describes: files below a folder, an environment, answers of commands."""

import json

import pytest

from deepseek.doctor import CHECKS, Machine
from deepseek.doctor.adjtimex import ClockState
from deepseek.doctor.machine import Output, Space

GIB = 2**30
CHECKS_BY_NAME = {check.name: check for check in CHECKS}


@pytest.fixture
def describe(tmp_path):
    """Return a function that makes a `Machine` of facts."""

    def make(
        files=None,
        env=None,
        commands=None,
        torch=None,
        names=None,
        connects="refused",
        listens=True,
        space=None,
        clock=None,
        now=4e9,
        python=("python3", (3, 12, 1)),
    ):
        """`commands` maps the beginning of a command to its output; `torch` is what it says."""
        root = tmp_path / "root"
        for name, text in {"/proc/version": "", **(files or {})}.items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        answers = {
            begin: done if isinstance(done, Output) else Output(0, done)
            for begin, done in (commands or {}).items()
        }
        report = {"torch": "2.14.1+cu130", "cuda": "13.0", "torchvision": "0.29.1+cu130"}
        report |= {"nccl": "2.30.7", "is_complete": True, "device_count": 0}
        lines = (
            torch if isinstance(torch, Output) else Output(0, json.dumps(report | (torch or {})))
        )

        def command(words, timeout_s):
            del timeout_s
            if "deepseek.doctor.torch_probe" in words:
                return lines
            joined = " ".join(words)
            fits = [begin for begin in answers if joined.startswith(begin)]
            return answers[max(fits, key=len)] if fits else None

        return Machine(
            root=root,
            env={} if env is None else env,
            folder=root / "runs",
            hostname="node1",
            python=python,
            command=command,
            resolve=lambda host: ({"node1": ["10.0.0.5"]} | (names or {})).get(host, []),
            connect=lambda host, port: connects,
            listen=lambda port: listens,
            space=lambda path: space or Space(500 * GIB, 100 * GIB, 10**6, 10**6),
            clock_state=lambda: clock or ClockState(True, 2000, 50),
            now=lambda: now,
        )

    return make


@pytest.fixture
def ask():
    """Return a function that runs one check, and shows verdicts and words."""

    def run(name, machine):
        findings = CHECKS_BY_NAME[name](machine)
        assert all(finding.name == name for finding in findings)
        for finding in findings:
            assert finding.mend or finding.verdict in ("ok", "note"), finding
        return [(str(finding.verdict), f"{finding.what} | {finding.mend}") for finding in findings]

    return run


@pytest.fixture
def expect(describe, ask):
    """Return a function that holds a check's worst finding against a verdict and some words."""

    def hold(name, facts, verdict, *words):
        found = ask(name, describe(**facts))
        if verdict is None:
            assert found == []
            return
        order = ["ok", "note", "warning", "problem"]
        worst = max(found, key=lambda finding: order.index(finding[0]))
        assert worst[0] == verdict, found
        for word in words:
            assert word in worst[1]

    return hold
