"""The curves of a run: losses, metrics, schedule, speed, whatever else was logged."""

import re
from collections.abc import Sequence

import numpy as np

from deepseek.deploy.report.chart import Series, line_chart, should_be_log
from deepseek.deploy.report.markup import Section, text
from deepseek.deploy.report.quantity import Unit, title_of, unit_of
from deepseek.deploy.report.records import Records
from deepseek.deploy.report.run_folder import RunFolder

OPTIMIZATION = ("lr", "grad_norm")
SPEED = re.compile(r"_per_s$|^data_wait_share$|_bytes$")
CLOCKS = {"step", "epoch", "time_s", "eta_s", "epoch_s"}
LOG_WHERE_WIDE = re.compile(r"(^|_)loss($|_)|^grad_norm$")
MAX_CHARTS = 24

Marks = Sequence[tuple[float, str]]


def curve_sections(run: RunFolder) -> list[Section]:
    """Return the sections drawn from metrics.jsonl."""
    names = _base_names(run)
    learning = [name for name in names if name not in OPTIMIZATION and not SPEED.search(name)]
    learning.sort(key=lambda name: ("loss" not in name, names.index(name)))
    marks = _resumes(run)
    return [
        _section("curves", "Loss and metrics", learning, run, marks),
        _section("optimization", "Learning rate and gradient norm",
                 [name for name in OPTIMIZATION if name in names], run, marks),
        _section("performance", "Throughput, memory and data wait",
                 [name for name in names if SPEED.search(name)], run, marks),
    ]  # fmt: skip


def _section(id: str, title: str, names: list[str], run: RunFolder, marks: Marks) -> Section:
    charts = [chart for name in names[:MAX_CHARTS] if (chart := _chart(name, run, marks))]
    if not charts:
        reason = run.missing.get("metrics.jsonl", "metrics.jsonl has no finite value to draw here.")
        return Section(id, title, reason=reason)
    body = f'<div class="charts">{"".join(charts)}</div>'
    if len(names) > MAX_CHARTS:
        rest = ", ".join(names[MAX_CHARTS:])
        body += f'<p class="note">Logged too, not drawn: {text(rest)}.</p>'
    return Section(id, title, body)


def _base_names(run: RunFolder) -> list[str]:
    """Names of what was logged, `val_x` and `x` as one, in the order of their first appearance."""
    names: dict[str, None] = {}
    for kind in sorted(run.records, key=lambda kind: kind != "train"):
        for name in run.records[kind].columns:
            if name not in CLOCKS:
                names[name.removeprefix("val_") or name] = None
    return sorted(names)


def _chart(name: str, run: RunFolder, marks: Marks) -> str:
    """One chart of everything that was logged under `name` and `val_` + `name`."""
    found: list[tuple[str, Records, str]] = []
    for kind, records in run.records.items():
        for column in (name, f"val_{name}"):
            if column in records.columns:
                found.append((kind, records, column))
    if any(kind == "train" and column == name for kind, _, column in found):
        # The epoch's record repeats what the train records say in more detail.
        found = [entry for entry in found if entry[0] != "epoch" or entry[2] != name]
    found.sort(key=lambda entry: (entry[2] != name, entry[0]))
    x_name = found[0][1].axis()[0]
    lines: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for kind, records, column in found:
        if records.axis()[0] == x_name:
            lines.setdefault(_label(kind, column, name), []).append(records.points(column))
    series = [_joined(label, parts) for label, parts in lines.items()]
    values = [entry.y for entry in series]
    largest = max((float(np.abs(y).max()) for y in values if len(y)), default=0.0)
    unit = Unit() if name == "lr" else unit_of(name, largest)
    is_log = bool(LOG_WHERE_WIDE.search(name)) and should_be_log(*values)
    shown = title_of("data_wait" if name == "data_wait_share" else name)
    return line_chart(series, title=shown, x_name=x_name, unit=unit, is_log=is_log, marks=marks)


def _joined(label: str, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Series:
    """Return one line of the points of all parts, in the order of x."""
    x, y = (np.concatenate(values) for values in zip(*parts, strict=True))
    order = np.argsort(x, kind="stable")
    return Series(label, x[order], y[order], has_markers=label != "training")


def _label(kind: str, column: str, name: str) -> str:
    if column != name:  # evaluations within an epoch and at its end are one line
        return "validation"
    return {"train": "training", "epoch": "per epoch"}.get(kind, kind)


def _resumes(run: RunFolder) -> Marks:
    marks = []
    for event in run.events:
        what = str(event.get("event", event.get("kind", "")))
        step = event.get("step")
        if what.startswith("resume") and isinstance(step, int | float) and np.isfinite(step):
            marks.append((float(step), f"resumed at step {step:,}"))
    return marks[:50]
