"""A dry run in words: what a rank holds, needs and sends, beside the planner's figures."""

from collections.abc import Iterator, Mapping

from deepseek.trainer.console import MIB
from deepseek.trainer.dry_run import CATEGORIES, DryRun

MOST_OFF = 0.1
"""Of the planner's sum, beyond which it is said what it differs by."""


def describe_dry_run(run: DryRun) -> list[str]:
    """Return the lines that `deepseek train --dry-run` prints."""
    lines = [
        f"dry run of rank {run.rank} of {run.world_size} in {run.seconds:.1f} s, walked on fake"
        " tensors as on a CPU: nothing was computed, nothing is written",
        *run.lines,
        "",
        *_memory_lines(run),
    ]
    if run.traffic:
        lines += ["", *_traffic_lines(run)]
    if run.forecast is not None and run.forecast.note:
        lines.append(f"planner: {run.forecast.note}")
    return lines + [f"note: {note}" for note in run.notes]


def _memory_lines(run: DryRun) -> Iterator[str]:
    planned = run.forecast.memory if run.forecast is not None else None
    between = sum(run.held.values())
    yield (
        f"memory: {between / MIB:,.1f} MiB between steps, {run.peak_bytes / MIB:,.1f} at the peak"
        + (f", {run.host_bytes / MIB:,.1f} on the host" if run.host_bytes else "")
    )
    yield f"  {'MiB at the peak':<24}{'walked':>12}" + _columns(planned)
    for name in CATEGORIES:
        walked = run.peak.get(name, 0)
        if walked or (planned or {}).get(name):
            yield f"  {name:<24}{_mib(walked)}" + _beside(walked, planned, name)
    total = None if planned is None else {"sum": sum(planned.values())}
    yield f"  {'sum':<24}{_mib(run.peak_bytes)}" + _beside(run.peak_bytes, total, "sum")
    if planned is not None and (words := _say_difference(run, planned)):
        yield words


def _say_difference(run: DryRun, planned: Mapping[str, float]) -> str:
    """Return which category two sums differ by; empty where they are near each other."""
    off = sum(planned.values()) / run.peak_bytes - 1
    if abs(off) <= MOST_OFF:
        return ""
    by = {name: planned.get(name, 0.0) - run.peak.get(name, 0) for name in CATEGORIES}
    name = max(by, key=lambda each: abs(by[each]))
    return (
        f"  the planner's sum is {off:+.1%} off, most of it by {name} ({by[name] / MIB:+,.1f} MiB):"
        " what was walked counts"
    )


def _traffic_lines(run: DryRun) -> Iterator[str]:
    planned = run.forecast.sent if run.forecast is not None else None
    yield "collectives of a step, beside two sums of 48 bytes on the host"
    yield f"  {'axis':<9}{'kind':<15}{'number':>9}{'MiB':>12}{'MiB sent':>12}"
    for each in run.traffic:
        yield (
            f"  {each.axis:<9}{each.kind:<15}{each.number:>9,}{_mib(each.num_bytes)}"
            f"{_mib(each.sent_bytes)}"
        )
    yield f"  {'MiB sent by this rank':<24}{'walked':>12}" + _columns(planned)
    sent: dict[str, float] = {}
    for each in run.traffic:
        axis = each.axis.partition(" ")[0]
        sent[axis] = sent.get(axis, 0.0) + each.sent_bytes
    for axis in sorted({*sent, *(name for name, size in (planned or {}).items() if size)}):
        walked = sent.get(axis, 0.0)
        yield f"  {axis:<24}{_mib(walked)}" + _beside(walked, planned, axis)


def _columns(planned: Mapping[str, float] | None) -> str:
    return "" if planned is None else f"{'planner':>12}{'off':>9}"


def _beside(walked: float, planned: Mapping[str, float] | None, name: str) -> str:
    """Return the planner's figure, and how far it is off what was walked."""
    if planned is None:
        return ""
    figure = planned.get(name)
    if figure is None:
        return f"{'-':>12}{'-':>9}"
    off = f"{figure / walked - 1:+.1%}" if walked > figure / 100 else "-"
    return f"{_mib(figure)}{off:>9}"


def _mib(size: float) -> str:
    return f"{size / MIB:>12,.2f}"
