"""What a run came to, and in what two runs differ."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepseek.checkpoint import CheckpointStore

# what a clock or the machine says is not part of a run's outcome
CLOCKS = frozenset(
    {"time_s", "epoch_s", "eta_s", "samples_per_s", "data_wait_share", "memory_bytes"}
)
MAX_LISTED = 4


@dataclass(frozen=True)
class Outcome:
    """Everything of a finished run that an exact resume must reproduce.

    Attributes:
        step: optimizer steps taken.
        tensors: group (`model`, `optimizer`, `ema`) -> name -> tensor.
        metrics: the lines of `metrics.jsonl` without clocks.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    metrics: list[dict]


def read_outcome(run: Path) -> Outcome:
    """Read the newest checkpoint and the metrics of a run folder.

    Raises:
        CheckpointError: there is no whole checkpoint.
    """
    checkpoint = CheckpointStore(run / "checkpoints").load_latest()
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [
        {key: value for key, value in json.loads(line).items() if key not in CLOCKS}
        for line in lines
    ]
    tensors = {group: dict(stored) for group, stored in checkpoint.tensors.items()}
    return Outcome(checkpoint.step, tensors, metrics)


def differences(expected: Outcome, found: Outcome) -> list[str]:
    """Return in words what differs, bit for bit; nothing where the runs are the same."""
    problems = []
    if expected.step != found.step:
        problems.append(f"{found.step} steps instead of {expected.step}")
    if expected.tensors.keys() != found.tensors.keys():
        problems.append(f"groups {sorted(found.tensors)} instead of {sorted(expected.tensors)}")
    for group, tensors in expected.tensors.items():
        others = found.tensors.get(group, {})
        wrong = [name for name, tensor in tensors.items() if not _same(tensor, others.get(name))]
        if wrong:
            shown = ", ".join(wrong[:MAX_LISTED]) + (", ..." if len(wrong) > MAX_LISTED else "")
            problems.append(f"{len(wrong)} of {len(tensors)} tensors of {group} differ: {shown}")
    if expected.metrics != found.metrics:
        pairs = zip(expected.metrics, found.metrics, strict=False)
        first = next((a.get("step") for a, b in pairs if a != b), "the end")
        problems.append(f"metrics.jsonl differs from step {first} on")
    return problems


def _same(first: Tensor, second: Tensor | None) -> bool:
    if second is None or first.dtype != second.dtype or first.shape != second.shape:
        return False
    as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (first, second)]
    return torch.equal(*as_bytes)  # NaN equals NaN here
