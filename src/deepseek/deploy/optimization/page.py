"""The page of an optimisation: the choice, the front in four pictures, every candidate."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek.deploy.optimization.candidate import BASE
from deepseek.deploy.optimization.quality import is_share
from deepseek.deploy.optimization.result import KEPT, Optimization, Row
from deepseek.deploy.report.chart import Point, scatter_chart
from deepseek.deploy.report.markup import Section, fold, table, text
from deepseek.deploy.report.page import assemble_page
from deepseek.deploy.report.quantity import Unit, number, title_of
from deepseek.version import __version__

SHOWN_DROPS = 5
"""Drops beyond so many times the tolerance would make the rest of a picture a line."""


@dataclass(frozen=True)
class _Axis:
    title: str
    x_name: str
    x: Callable[[Row], float]
    is_rising: bool = False
    """Whether more is better."""
    is_log: bool = True


_AXES = (
    _Axis("Latency", "ms for one sample", lambda row: 1000 * row.one.seconds if row.one else 0.0),
    _Axis("Throughput", "samples per second", lambda row: row.samples_per_s, is_rising=True),
    _Axis("Size", "MB of file", lambda row: row.file_bytes / 1e6, is_log=False),
    _Axis("Memory", "MB at the peak", lambda row: row.peak_bytes / 1e6, is_log=False),
)


def write_page(result: Optimization, body: dict) -> Path:
    """Write `report.html`, in one move.

    Args:
        result: what was found.
        body: the same as `report.json` holds it.
    """
    best = result.best
    head = (
        '<header><p class="kicker">deepseek optimize</p>'
        f"<h1>{text(best.candidate.name)}</h1>"
        f'<p class="lead"><span class="status good">✓ best for {text(result.target)}</span> '
        f"{text(_lead(result))}</p></header>"
    )
    sections = [
        _summary(result), _pictures(result), *_sizes(result), _candidates(result),
        _environment(body["machine"], body["versions"]),
    ]  # fmt: skip
    page = assemble_page(
        f"{best.candidate.name} · optimize", head, sections,
        f"Written by deepseek {__version__}. Times are medians of turns with the original.",
    )  # fmt: skip
    draft = result.report.with_name(f".{result.report.name}.{os.getpid()}")
    draft.write_text(page, encoding="utf-8")
    draft.replace(result.report)
    return result.report


def _lead(result: Optimization) -> str:
    return (
        f"{sum(row.is_measured for row in result.rows)} of {len(result.rows)} candidates measured,"
        f" on {result.num_samples:,} samples; {result.metric} may drop by {result.tolerance:.2%}"
    )


def _summary(result: Optimization) -> Section:
    row = result.best
    if row.one is None or row.fastest is None or row.quality is None:
        return Section("summary", "Summary", reason="nothing was measured.")
    tiles = [
        ("Latency", f"{number(1000 * row.one.seconds)} ms", f"{row.one.ratio:.2f}x as fast"),
        ("Throughput", f"{number(row.samples_per_s)} /s",
         f"{row.fastest.timing.ratio:.2f}x, in batches of {row.fastest.size}"),
        ("File", f"{number(row.file_bytes / 1e6)} MB", ""),
        ("Memory", f"{number(row.peak_bytes / 1e6)} MB", "peak of the process"),
        (title_of(result.metric), number(row.quality.value), _drop(row, result.metric)),
        ("Ready", f"{number(row.ready_s)} s", "from the file to the first answer"),
    ]  # fmt: skip
    body = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(place)}</small></dd></div>"
        for name, value, place in tiles
    )
    notes = "".join(f'<p class="warning">{text(note)}</p>' for note in result.notes)
    return Section("summary", "Summary", f'<dl class="tiles">{body}</dl>{notes}')


def _pictures(result: Optimization) -> Section:
    limit = max(SHOWN_DROPS * result.tolerance, 1e-4)
    shown = [
        (f"{at} ✓" if row == result.best else str(at), row)
        for at, row in enumerate(result.rows, 1)
        if row.is_measured and row.quality is not None and row.quality.drop <= limit
    ]
    names = {row.candidate for row in result.front}
    charts = [_picture(axis, shown, names, result) for axis in _AXES]
    note = (
        "Numbers are those of the table, ✓ is chosen. Filled: no other candidate is as good in"
        " latency, throughput, size, memory and metric at once. The line joins those that no other"
        " beats in the two directions of a picture."
    )
    hidden = sum(row.is_measured for row in result.rows) - len(shown)
    if hidden:
        note += f" {hidden} with a drop beyond {limit:.2%} are in the table alone."
    body = f'<div class="charts">{"".join(charts)}</div><p class="note">{text(note)}</p>'
    return Section("front", "What one buys with the other", body if shown else "", "no figures.")


def _picture(
    axis: _Axis, shown: Sequence[tuple[str, Row]], front: set, result: Optimization
) -> str:
    points = [
        Point(
            axis.x(row), _drop_of(row), label, f"{label} {row.candidate.name}",
            row.candidate.runtime, is_hollow=row.candidate not in front,
        )
        for label, row in shown
    ]  # fmt: skip
    line = _staircase([(point.x, point.y) for point in points], axis.is_rising)
    best = axis.x(result.best)
    base = next(axis.x(row) for row in result.rows if row.candidate == BASE)
    return scatter_chart(
        points,
        title=f"{axis.title} and drop of {result.metric}",
        x_name=axis.x_name,
        summary=f"As it was: {number(base)}; chosen: {number(best)} {axis.x_name}.",
        unit=Unit("points" if is_share(result.metric) else "%", 100.0),
        is_log=axis.is_log and all(point.x > 0 for point in points),
        line=line,
    )


def _staircase(places: list[tuple[float, float]], is_rising: bool) -> list[tuple[float, float]]:
    """Return the places that no other beats in both directions, with the steps between."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(places, key=lambda at: (-at[0] if is_rising else at[0], at[1])):
        if not found or y < found[-1][1]:
            if found:
                found.append((x, found[-1][1]))
            found.append((x, y))
    return found


def _sizes(result: Optimization) -> list[Section]:
    """Return what batches of each size take, where there are several."""
    places = [
        (at, row, batch) for at, row in enumerate(result.rows, 1) for batch in row.batches
        if row.status == KEPT
    ]  # fmt: skip
    if len({batch.size for _, _, batch in places}) < 2:
        return []
    front = {(row.candidate, batch.size) for row, batch in result.front_of_batches}
    points = [
        Point(
            1000 * batch.timing.seconds, batch.samples_per_s, f"{at}·{batch.size}",
            f"{at} {row.candidate.name}, {batch.size} samples", f"batches of {batch.size}",
            is_hollow=(row.candidate, batch.size) not in front,
        )
        for at, row, batch in sorted(places, key=lambda place: place[2].size)
    ]  # fmt: skip
    steps = _staircase([(point.x, -point.y) for point in points], is_rising=False)
    chart = scatter_chart(
        points, title="Time and throughput of a batch", x_name="ms for a batch",
        summary=f"Samples per second in batches of each size; {len(front)} that no other beats.",
        is_log=True, line=[(x, -y) for x, y in steps],
    )  # fmt: skip
    cells = [
        [
            f"{at} {text(row.candidate.name)}", text(batch.size),
            text(f"{1000 * batch.timing.seconds:.3g}"), text(f"{batch.samples_per_s:,.0f}"),
            text(f"{batch.timing.ratio:.2f}x"),
            "on the front" if (row.candidate, batch.size) in front else "",
        ]
        for at, row, batch in places
    ]  # fmt: skip
    body = f'<div class="charts">{chart}</div>' + table(
        ("Candidate", "Samples", "A batch, ms", "Samples/s", "Faster", "Outcome"), cells,
        caption="Batches of each size", numeric=(1, 2, 3, 4), is_sortable=True,
    )  # fmt: skip
    note = "Faster than the original in batches of the same size. Those inside the tolerance."
    return [Section("batches", "Batch sizes", f'{body}<p class="note">{text(note)}</p>')]


def _candidates(result: Optimization) -> Section:
    front = {row.candidate for row in result.front}
    measured, others = [], []
    for at, row in enumerate(result.rows, 1):
        mark = "chosen" if row.candidate == result.best.candidate else row.status
        if row.candidate in front and mark == KEPT:
            mark = "on the front"
        cells = [f"{at} {text(row.candidate.name)}", text(mark)]
        if row.is_measured and row.quality is not None:
            remark = "; ".join(filter(None, [row.reason, *row.fused]))
            measured.append([*cells, *_cells(row, result.metric), text(remark)])
        else:
            others.append([*cells, text(row.reason)])
    head = (
        "Candidate", "Outcome", "Latency, ms", "Faster", "Samples/s", "Faster", "File, MB",
        "Memory, MB", title_of(result.metric), "Change", "Ready, s", "Converted, s", "Remark",
    )  # fmt: skip
    body = table(
        head, measured, caption="Candidates that were measured", numeric=tuple(range(2, 12)),
        is_sortable=True,
    )  # fmt: skip
    body += '<p class="note">Behind a latency are its quartiles, behind a change its 95 %.</p>'
    if others:
        head = ("Candidate", "Outcome", "Reason")
        body += "<h3>Without figures</h3>"
        body += table(head, others, caption="Candidates without figures")
    return Section("candidates", "All candidates", body)


def _cells(row: Row, metric: str) -> list[str]:
    if row.one is None or row.fastest is None or row.quality is None:
        return []
    low, high = (1000 * each for each in row.one.quartiles)
    return [
        text(f"{1000 * row.one.seconds:.3g} ({low:.3g}–{high:.3g})"),
        text(f"{row.one.ratio:.2f}x"),
        text(f"{row.samples_per_s:,.0f}"),
        text(f"{row.fastest.timing.ratio:.2f}x"),
        text(f"{row.file_bytes / 1e6:.2f}"),
        text(f"{row.peak_bytes / 1e6:,.0f}"),
        text(f"{row.quality.value:.4f}"),
        text(_drop(row, metric)),
        text(f"{row.ready_s:.2f}"),
        text(f"{row.convert_s:.1f}"),
    ]


def _drop(row: Row, metric: str) -> str:
    if row.quality is None:
        return ""
    sign = -1 if is_share(metric) else 1
    low, high = sorted(100 * sign * each for each in row.quality.interval)
    unit = "points" if is_share(metric) else "%"
    shown = [round(each, 2) + 0.0 for each in (100 * sign * row.quality.drop, low, high)]
    return f"{shown[0]:+.2f} {unit} ({shown[1]:+.2f} to {shown[2]:+.2f})"


def _drop_of(row: Row) -> float:
    return row.quality.drop if row.quality else 0.0


def _environment(machine: dict, versions: dict) -> Section:
    found = {**machine, **{f"{name} version": each for name, each in versions.items()}}
    found["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "not set")
    rows = [(text(name), text(value)) for name, value in found.items()]
    body = fold("Machine and versions", table(("Name", "Value"), rows, caption="Environment"))
    return Section("environment", "Environment", body)
