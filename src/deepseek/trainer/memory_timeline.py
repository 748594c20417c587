"""What the memory of a step is for, moment by moment, from torch's own trace.

A tensor's category follows from the phase that makes it and the one that frees it:

```
made in    freed in                        category
any        the same                        temporary
forward    later                           activations
backward   later                           gradients
optimizer  later                           optimizer
other      later                           temporary
```
Weights and what else is there before are levels of their own.

Shapes: E events, P points.
"""

import gzip
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

MAX_POINTS = 2000
MADE_IN = {"forward": "activations", "backward": "gradients", "optimizer": "optimizer"}
CATEGORIES = ("weights", "average", "optimizer", "gradients", "activations", "temporary")
"""From what stays to what comes and goes: the order in which they are drawn upon each other."""


def read_timeline(path: Path, device_type: str, held: Mapping[str, int]) -> dict:
    """Return times and bytes by category.

    Args:
        path: of the trace, gzipped JSON with phases as annotations.
        device_type: whose memory: "cpu", or "cuda".
        held: bytes by category of what was there before.

    Returns:
        `ms`, a list (P,), and `bytes`, a list (P,) for each category that is ever above 0.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    phases = sorted(
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]), str(event["name"]))
        for event in events
        if event.get("cat") == "user_annotation" and "dur" in event
    )
    wanted = 0 if device_type == "cpu" else 1  # kineto's numbers of devices
    changes = sorted(
        (
            float(event["ts"]), int(event["args"].get("Ev Idx", 0)),
            int(event["args"]["Addr"]), int(event["args"]["Bytes"]),
        )
        for event in events
        if event.get("name") == "[memory]" and event["args"].get("Device Type") == wanted
    )  # fmt: skip
    if not changes:
        return {"ms": [], "bytes": {}}
    times = np.array([change[0] for change in changes])
    sizes = np.array([change[3] for change in changes], dtype=np.float64)
    names = _name_all(changes, _phase_of(times, phases), phases)
    levels = {}
    for category in CATEGORIES:
        is_of_it = np.array([name == category for name in names])
        level = np.cumsum(np.where(is_of_it, sizes, 0.0))
        # what was there before may be freed within, and must not count below nothing
        levels[category] = level - min(0.0, level.min()) + held.get(category, 0)
    keep = _highest(np.sum(list(levels.values()), axis=0))
    return {
        "ms": ((times[keep] - times[0]) / 1e3).round(4).tolist(),
        "bytes": {name: level[keep].tolist() for name, level in levels.items() if level.any()},
    }


def _phase_of(times: np.ndarray, phases: list[tuple[float, float, str]]) -> np.ndarray:
    """Return the number of the phase that each time (E,) is in, -1 between phases."""
    if not phases:
        return np.full(len(times), -1)
    begins, ends = np.array([p[0] for p in phases]), np.array([p[1] for p in phases])
    at = np.searchsorted(begins, times, side="right") - 1
    return np.where((at >= 0) & (times <= ends[at]), at, -1)


def _name_all(
    changes: list[tuple[float, int, int, int]],
    at: np.ndarray,
    phases: list[tuple[float, float, str]],
) -> list[str]:
    """Return the category of each change: an allocation's, and that of it when it is freed."""
    names = ["temporary"] * len(changes)
    made: dict[int, int] = {}
    for number, (_, _, address, size) in enumerate(changes):
        if size > 0:
            made[address] = number
            phase = phases[at[number]][2] if at[number] >= 0 else ""
            names[number] = MADE_IN.get(phase, "temporary")
        elif (begin := made.pop(address, None)) is not None:
            if at[begin] == at[number]:
                names[begin] = "temporary"
            names[number] = names[begin]
    return names


def _highest(total: np.ndarray) -> np.ndarray:
    """Return the places (P,) of the highest points, one of each part of the row (E,)."""
    if len(total) <= MAX_POINTS:
        return np.arange(len(total))
    edges = np.linspace(0, len(total), MAX_POINTS + 1).astype(int)
    return np.array([begin + int(total[begin:end].argmax()) for begin, end in pairwise(edges)])
