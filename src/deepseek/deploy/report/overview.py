"""What a reader wants first and last: status and figures; events, settings, machine."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

from deepseek.deploy.report.markup import Section, fold, shorten, table, text
from deepseek.deploy.report.quantity import (
    duration,
    is_higher_better,
    number,
    title_of,
    unit_of,
)
from deepseek.deploy.report.records import Records
from deepseek.deploy.report.run_folder import RunFolder

MAX_EVENTS = 200
_GOOD = ("finish", "complete", "done", "success")
_BAD = ("diverge", "fail", "error", "crash")


@dataclass(frozen=True)
class BestMetric:
    """The best value of a metric and where it was reached."""

    name: str
    value: float
    place: str = ""


def header(run: RunFolder) -> str:
    """Return the page's head: name, status, best metric, time, device."""
    status = str(run.summary.get("status", "unfinished"))
    kind = (
        "good"
        if status.lower().startswith(_GOOD)
        else "bad"
        if status.lower().startswith(_BAD)
        else "open"
    )
    sign = {"good": "✓", "bad": "✗", "open": "…"}[kind]
    facts = []
    best = best_metric(run)
    if best:
        facts.append(f"best {title_of(best.name).lower()} {_show(best.name, best.value)}")
    seconds = wall_time_s(run)
    if seconds is not None:
        facts.append(duration(seconds))
    facts.append(device_line(run))
    line = " · ".join(fact for fact in facts if fact)
    return (
        f'<header><p class="kicker">deepseek run report</p><h1>{text(run.path.resolve().name)}</h1>'
        f'<p class="lead"><span class="status {kind}">{sign} {text(shorten(status))}'
        f"</span> {text(line)}</p></header>"
    )


def summary_section(run: RunFolder) -> Section:
    """Return the tiles with the run's main figures, and what was read only in part."""
    tiles = [_tile(name, value, place) for name, value, place in _figures(run)]
    body = f'<dl class="tiles">{"".join(tiles)}</dl>' if tiles else ""
    body += "".join(f'<p class="warning">{text(warning)}</p>' for warning in run.warnings)
    return Section("summary", "Summary", body, "the run has logged nothing yet.")


def events_section(run: RunFolder) -> Section:
    """Return the events of events.jsonl, newest last."""
    reason = run.missing.get("events.jsonl", "events.jsonl holds no events.")
    known = ("event", "kind", "step", "time_s", "time")
    rows = []
    for event in run.events[-MAX_EVENTS:]:
        what = event.get("event", event.get("kind", "?"))
        seconds = event.get("time_s", event.get("time", ""))
        if isinstance(seconds, int | float) and 0 <= seconds < 1e8:
            seconds = duration(float(seconds))
        rest = ", ".join(
            f"{key}: {_plain(value)}" for key, value in event.items() if key not in known
        )
        step = event.get("step", "")
        cells = (what, f"{step:,}" if isinstance(step, int) else step, seconds, shorten(rest, 400))
        rows.append(tuple(text(cell) for cell in cells))
    if not rows:
        return Section("events", "Events", reason=reason)
    body = table(
        ("Event", "Step", "Time", "Details"), rows, caption="Events of the run", numeric=(1, 2)
    )
    if len(run.events) > MAX_EVENTS:
        body += f'<p class="note">The last {MAX_EVENTS} of {len(run.events):,}.</p>'
    return Section(
        "events", "Events", fold(f"{len(run.events):,} events", body, is_open=len(rows) <= 12)
    )


def config_section(run: RunFolder) -> Section:
    """Return the resolved configuration."""
    reason = run.missing.get("config.yaml", "config.yaml is empty.")
    pre = f'<pre tabindex="0">{text(run.config)}</pre>'
    body = fold("config.yaml, every setting resolved", pre) if run.config.strip() else ""
    return Section("config", "Configuration", body, reason)


def environment_section(run: RunFolder) -> Section:
    """Return versions, machine, source and arguments."""
    reason = run.missing.get("environment.json", "environment.json is empty.")
    rows = [(text(name), text(shorten(value, 400))) for name, value in _flat(run.environment)]
    body = table(("Name", "Value"), rows, caption="Environment of the run") if rows else ""
    return Section(
        "environment",
        "Environment",
        fold("Versions, machine, source", body) if rows else "",
        reason,
    )


def best_metric(run: RunFolder) -> BestMetric | None:
    """Return the monitored metric at its best (summary.json), or that of the epochs' records."""
    best, name = run.summary.get("best"), run.summary.get("monitor")
    if isinstance(best, dict) and isinstance(name, str) and _is_number(best.get(name)):
        place = [f"{key} {best[key]:,}" for key in ("epoch", "step") if _is_number(best.get(key))]
        return BestMetric(name, float(best[name]), ", ".join(place))
    epochs = run.records.get("epoch")
    if epochs is None:
        return None
    names = [name for name in epochs.columns if name.startswith("val_")]
    names.sort(key=lambda name: (not is_higher_better(name), name != "val_accuracy", name))
    for name in names or ["loss"]:
        x, y = epochs.points(name)
        if len(y):
            at = int(y.argmax() if is_higher_better(name) else y.argmin())
            return BestMetric(name, float(y[at]), f"{epochs.axis()[0]} {x[at]:,.0f}")
    return None


def wall_time_s(run: RunFolder) -> float | None:
    """Return how long the run took, seconds."""
    seconds = run.summary.get("time_s")
    if _is_number(seconds):
        return float(seconds)
    last = [value for entry in run.records.values() if (value := entry.last("time_s")) is not None]
    return max(last, default=None)


def device_line(run: RunFolder) -> str:
    """Return the device the run was on, as far as the environment tells."""
    found = dict(_flat(run.environment))
    for wanted in (
        "device_name",
        "gpu_name",
        "gpu",
        "gpus",
        "device",
        "cpu",
        "machine",
        "platform",
    ):
        for name, value in found.items():
            if name.rpartition(".")[2] == wanted and value:
                return shorten(value, 80)
    return ""


def _figures(run: RunFolder) -> Iterator[tuple[str, str, str]]:
    """Name, value and place of each tile."""
    best = best_metric(run)
    if best:
        yield f"Best {title_of(best.name).lower()}", _show(best.name, best.value), best.place
    train = run.records.get("train", Records({}))
    epochs = run.records.get("epoch", Records({}))
    for name, records, label in (
        ("loss", train, "Training loss"),
        ("val_loss", epochs, "Validation loss"),
    ):
        value = records.last(name)
        if value is not None:
            yield label, number(value), "last"
    step = max((v for r in (train, epochs) if (v := r.last("step")) is not None), default=None)
    if step is not None:
        epoch = epochs.last("epoch") or train.last("epoch")
        yield "Steps", f"{step:,.0f}", f"{epoch:.3g} epochs" if epoch else ""
    seconds = wall_time_s(run)
    if seconds is not None:
        budget = run.summary.get("time_budget_s")
        yield "Time", duration(seconds), f"of {duration(budget)}" if _is_number(budget) else ""
    source = train if len(train) else epochs
    for name in source.columns:
        values = source.points(name)[1]
        if name.endswith("_per_s"):
            value = float(sorted(values)[len(values) // 2])
            yield title_of(name), number(value), "median"
    for name, label, how in (
        ("memory_bytes", "Memory", "peak"),
        ("data_wait_share", "Data wait", "mean"),
    ):
        values = source.points(name)[1]
        if len(values):
            value = float(values.max() if how == "peak" else values.mean())
            yield label, _show(name, value), how


def _tile(name: str, value: str, place: str) -> str:
    return f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(place)}</small></dd></div>"


def _show(name: str, value: float) -> str:
    return unit_of(name, abs(value)).show(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as `a.b` -> text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        yield name, " ".join(value)
    else:
        yield name, _plain(value)
