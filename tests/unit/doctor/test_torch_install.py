import sys

import pytest

from deepseek.doctor.machine import Machine, Output
from deepseek.doctor.torch_report import ask_torch

CARD = {"/dev/nvidia0": "", "/dev/nvidia1": ""}
SEEN = {"device_count": 2, "devices": ["NVIDIA H100", "NVIDIA H100"]}


def broken(message):
    return Output(0, f'{{"python": "3.12.1"}}\n{{"error": "{message}"}}')


@pytest.mark.parametrize(
    ("name", "facts", "verdict", "words"),
    [
        ("python.version", {}, "ok", "3.12.1"),
        ("python.version", {"python": ("python3", (3, 10, 4))}, "problem", "3.10.4 is too old"),
        ("torch.import", {}, "ok", "2.14.1"),
        (
            "torch.import",
            {"torch": broken("ImportError: libcudart.so.13: cannot open shared object file")},
            "problem",
            "a CUDA library is missing",
        ),
        (
            "torch.import",
            {"torch": broken("ModuleNotFoundError: No module named 'torch'")},
            "problem",
            "pip install torch",
        ),
        ("torch.import", {"torch": Output(-4)}, "problem", "killed by SIGILL | the CPU lacks"),
        ("torch.import", {"torch": Output(-9)}, "problem", "most likely for memory"),
        ("torch.import", {"torch": Output(None)}, "problem", "the driver hangs"),
        ("torch.import", {"torch": Output(1, err="a\nboom\n")}, "problem", "with code 1: boom"),
        ("torch.version", {}, "ok", "torch 2.14.1"),
        (
            "torch.version",
            {"torch": {"torch": "2.9.0"}},
            "problem",
            "torch 2.9.0 is older than 2.11",
        ),
        ("torch.torchvision", {}, "ok", "0.29.1"),
        (
            "torch.torchvision",
            {"torch": {"torchvision": "0.26.0"}},
            "problem",
            "which wants 0.29 | pip install 'torchvision==0.29.*'",
        ),
        (
            "torch.torchvision",
            {"torch": {"torchvision": "0.29.1+cpu"}},
            "problem",
            "different builds",
        ),
        (
            "torch.torchvision",
            {"torch": Output(0, '{"torch": "2.14.1"}\n{"torchvision_error": "nms is missing"}')},
            "problem",
            "nms is missing",
        ),
        (
            "torch.torchvision",
            {"torch": Output(-11, '{"torch": "2.14.1"}')},
            "problem",
            "killed by SIGSEGV",
        ),
        ("torch.build", {"files": CARD}, "ok", "CUDA 13.0; 2 NVIDIA"),
        (
            "torch.build",
            {"files": CARD, "torch": {"cuda": None}},
            "problem",
            "built for CPU only, with 2 NVIDIA",
        ),
        ("torch.cuda", {"files": CARD, "torch": SEEN}, "ok", "sees 2 of 2 card(s): NVIDIA H100"),
        (
            "torch.cuda",
            {"files": CARD, "torch": {"cuda_warning": "driver is too old"}},
            "problem",
            "sees none of 2 card(s): driver is too old",
        ),
        (
            "torch.cuda",
            {"files": CARD, "torch": {"cuda_warning": "Error 802: system not yet initialized"}},
            "problem",
            "nvidia-fabricmanager",
        ),
        ("torch.cuda", {"files": CARD, "torch": {"device_count": 1}}, "warning", "1 of 2 cards"),
        (
            "torch.cuda",
            {"files": CARD, "torch": SEEN | {"cuda_error": "no kernel image"}},
            "problem",
            "no kernel image",
        ),
        (
            "torch.cuda",
            {"files": CARD, "env": {"CUDA_VISIBLE_DEVICES": ""}},
            "problem",
            "unset CUDA_VISIBLE_DEVICES",
        ),
    ],
)
def test_verdict_on_the_installation(expect, name, facts, verdict, words):
    expect(name, facts, verdict, words)


def test_this_library_says_its_version(expect):
    expect("deepseek.version", {}, "ok", "deepseek ")


def test_real_torch_tells_its_versions_from_a_process_of_its_own():
    report = ask_torch(Machine(env={}))
    assert report.failure is None
    assert report.version
    assert report.facts["torchvision"]


def test_torch_that_raises_at_import_is_told_with_its_words(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libcublas.so.13: no such file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    report = ask_torch(Machine(env={}))
    assert report.version is None
    assert report.failure == "OSError: libcublas.so.13: no such file"


def test_torch_that_kills_its_process_is_told_by_signal(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import os; os.kill(os.getpid(), 4)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert ask_torch(Machine(env={})).failure == "the process was killed by SIGILL"


def test_an_interpreter_that_is_not_there_is_told():
    machine = Machine(env={}, python=("/nowhere/python", sys.version_info[:3]))
    assert "cannot be started" in str(ask_torch(machine).failure)
