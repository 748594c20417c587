"""Reads what `torch_probe` printed."""

import json
import signal
from dataclasses import dataclass
from typing import Any

from deepseek.doctor.machine import TORCH_TIMEOUT_S, Machine, Output


@dataclass(frozen=True)
class TorchReport:
    """What a child process could tell of torch.

    Attributes:
        facts: of `torch_probe`, as far as it came.
        failure: why it did not come to its end; `None` where it did.
    """

    facts: dict[str, Any]
    failure: str | None = None

    @property
    def version(self) -> str | None:
        """Version of torch, `None` where it does not import."""
        return self.facts.get("torch")

    @property
    def cuda(self) -> str | None:
        """Version of CUDA that torch was built with."""
        return self.facts.get("cuda")


def ask_torch(machine: Machine) -> TorchReport:
    """Let a child process import torch, and return what it says."""
    # -P: a `torch.py` in the working folder is not what the `deepseek` command imports either.
    words = (machine.python[0], "-P", "-m", "deepseek.doctor.torch_probe")
    output = machine.output(*words, timeout_s=TORCH_TIMEOUT_S)
    if output is None:
        return TorchReport({}, f"the interpreter {machine.python[0]} cannot be started")
    facts: dict[str, Any] = {}
    for line in output.out.splitlines():
        facts.update(_parse(line))
    if "error" in facts:
        return TorchReport(facts, facts["error"])
    return TorchReport(facts, None if facts.get("is_complete") else _cause(output))


def _parse(line: str) -> dict[str, Any]:
    try:
        facts = json.loads(line)
    except ValueError:
        facts = None  # somebody else's line
    return facts if isinstance(facts, dict) else {}


def _cause(output: Output) -> str:
    if output.code is None:
        return f"it did not come to an end within {TORCH_TIMEOUT_S:.0f} s"
    if output.code < 0:
        return f"the process was killed by {signal.Signals(-output.code).name}"
    last = (output.err.strip().splitlines() or ["no message"])[-1]
    return f"the process ended with code {output.code}: {last[:500]}"
