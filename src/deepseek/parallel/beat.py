"""What a rank says of itself once a second, and what a set of such words means."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

MAX_SHOWN = 8
ENDS = "the limit is trainer.parallel.timeout_s"
BY_NCCL = " by NCCL"
"""Ends the name of a process group whose collectives NCCL counts, beside those that Gloo does."""
_RECORDERS = {"_dump_fr_trace_json": "", "_dump_nccl_trace_json": BY_NCCL}


@dataclass(frozen=True)
class Beat:
    """What a rank is at.

    Attributes:
        number: counts up; one that stands still is a process that does.
        step: optimizer step, from 0.
        phase: part of it.
        age_s: seconds since it began.
        stack: innermost lines of the main thread, outermost first.
        entered: process group -> number of collectives begun.
        waits: (group, operation, its number) of the collective that is under way.
    """

    number: int
    step: int
    phase: str
    age_s: float
    stack: list[str]
    entered: dict[str, int]
    waits: tuple[str, str, int] | None

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Beat":
        """Return what `to_json` wrote."""
        content = json.loads(text)
        waits = content.pop("waits")
        return cls(**content, waits=None if waits is None else (waits[0], waits[1], waits[2]))


def read_recorder() -> tuple[dict[str, int], tuple[str, str, int] | None]:
    """Return what torch's flight recorders, Gloo's and NCCL's, have of this process: see `Beat`."""
    entered: dict[str, int] = {}
    waits = None
    for recorder, library in _RECORDERS.items():
        for entry in _entries(recorder):
            group, number = entry["process_group"][0] + library, entry["collective_seq_id"]
            entered[group] = max(entered.get(group, 0), number)
            if not entry["retired"] and waits is None:
                waits = (group, entry["profiling_name"], number)
    return entered, waits


def _entries(recorder: str) -> list[dict]:
    """Return what a recorder holds; nothing where this torch has none."""
    try:
        import torch._C._distributed_c10d as c10d

        dump = getattr(c10d, recorder)(includeCollectives=True, onlyActive=False)
        return json.loads(dump).get("entries", [])
    except (ImportError, AttributeError, TypeError, RuntimeError, ValueError):
        return []


def describe_silence(
    rank: int,
    own: Beat,
    before: Mapping[int, Beat],
    beats: Mapping[int, Beat],
    groups: Mapping[str, str],
) -> str:
    """Return in words whom a rank waits for.

    Args:
        rank: who asks.
        own: what it is at.
        before: the beats of the others a few seconds ago.
        beats: theirs now.
        groups: process group -> axis.
    """
    silent = [r for r, beat in beats.items() if beat.number == getattr(before.get(r), "number", -1)]
    late = [r for r, b in beats.items() if r not in silent and _is_behind(b, own)]
    what = f"step {own.step + 1}, {own.phase}"
    if own.waits is not None:
        group, operation, number = own.waits
        name = group.removesuffix(BY_NCCL)
        what += f", in {operation} number {number} of {groups.get(name, f'group {name}')}"
    lines = []
    for other in silent:
        lines.append(
            f"rank {other} does not answer: stopped, or its host is gone; it was at"
            f" {_where(beats[other])}"
        )
    lines += [f"rank {other} has not come: it is at {_where(beats[other])}" for other in late]
    if not lines:
        waiting = [r for r, b in beats.items() if _is_behind(own, b)]
        if waiting:
            return (
                f"this rank, {rank}, is at {_where(own)}; rank {listed(waiting)} wait"
                f"{'s' * (len(waiting) == 1)} for it ({ENDS})"
            )
        lines = [f"rank {other} is at {_where(beat)}" for other, beat in beats.items()]
    if not lines:
        lines = ["nothing is known of the other ranks"]
    if len(lines) > MAX_SHOWN:
        lines = [*lines[:MAX_SHOWN], f"... and {len(lines) - MAX_SHOWN} more"]
    shown = "\n".join(f"  {line}" for line in lines)
    return f"rank {rank} waits for {own.age_s:.0f} s ({ENDS}): {what}\n{shown}"


def _is_behind(one: Beat, other: Beat) -> bool:
    """Return whether `one` has not yet come to where `other` waits."""
    if other.waits is not None:
        group, _, number = other.waits
        if group in one.entered and one.entered[group] >= number:
            return False
        if group in one.entered:
            return True
    return one.step < other.step or (one.waits is None and one.phase != other.phase)


def _where(beat: Beat) -> str:
    stack = f": {' < '.join(reversed(beat.stack[-3:]))}" if beat.stack else ""
    waits = f", in {beat.waits[1]} number {beat.waits[2]}" if beat.waits is not None else ""
    return f"step {beat.step + 1}, {beat.phase}{waits}, for {beat.age_s:.0f} s{stack}"


def listed(ranks: list[int]) -> str:
    """Return ranks as text, the first few of them."""
    shown = ", ".join(str(rank) for rank in ranks[:8])
    return shown + (", ..." if len(ranks) > 8 else "")
