"""Where the time and the memory of a step went, of a run with `trainer.profile=true`."""

import numpy as np

from deepseek.deploy.report.chart import NUM_COLORS, Series, stacked_chart
from deepseek.deploy.report.markup import Section, table, text
from deepseek.deploy.report.quantity import Unit
from deepseek.deploy.report.run_folder import RunFolder

MAX_CATEGORIES = NUM_COLORS
ID, TITLE = "profile", "Where a step's time and memory go"


def profile_section(run: RunFolder) -> Section:
    """Return the table of phases and the picture of the memory, or how to get them."""
    seconds = _numbers(run.profile.get("seconds_per_step"))
    if not seconds:
        note = (
            "Memory by category over time, and the time of each phase, are recorded with"
            " <code>trainer.profile=true</code>, which waits for the device after each phase."
        )
        return Section(ID, "Memory and time of a step", f'<p class="note">{note}</p>')
    whole = sum(seconds.values()) or 1.0
    rows = [
        (text(name), f"{1e3 * value:.2f}", f"{value / whole:.1%}", _bar(value / whole))
        for name, value in seconds.items()
    ]
    body = table(
        ["phase", "ms per step", "share", ""],
        rows,
        caption="time of a step by phase",
        numeric=(1, 2),
        foot=[("whole step", f"{1e3 * whole:.2f}", "100%", "")],
    )
    body += (
        f'<p class="note">Mean of {text(run.profile.get("num_steps"))} steps; each phase is'
        " measured to its end on the device. The trace of a few steps is profile/trace.json.gz, for"
        " ui.perfetto.dev.</p>"
    )
    return Section(ID, TITLE, body + _memory_chart(run.memory_timeline))


def _memory_chart(timeline: dict) -> str:
    times, levels = _column(timeline.get("ms")), timeline.get("bytes")
    if times is None or not isinstance(levels, dict):
        return ""
    columns = {str(name): _column(values) for name, values in levels.items()}
    series = [
        Series(name, times, values)
        for name, values in columns.items()
        if values is not None and len(values) == len(times)
    ]
    chart = stacked_chart(
        series[:MAX_CATEGORIES],
        title="Memory of tensors over the traced steps, by category",
        x_name="ms",
        unit=Unit("MiB", 2**-20),
    )
    return f'<div class="charts">{chart}</div>' if chart else ""


def _column(values: object) -> np.ndarray | None:
    """Return numbers (P,), or `None` for anything else."""
    if not isinstance(values, list) or not values:
        return None
    if not all(isinstance(value, int | float) for value in values):
        return None
    return np.array(values, dtype=np.float64)


def _numbers(values: object) -> dict[str, float]:
    if not isinstance(values, dict):
        return {}
    return {
        str(name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and 0 <= value < 1e6
    }


def _bar(share: float) -> str:
    return (
        '<svg width="120" height="10" viewBox="0 0 120 10" aria-hidden="true"><g class="s0">'
        f'<rect class="fill" width="{120 * share:.1f}" height="10"/></g></svg>'
    )
