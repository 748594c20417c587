"""Line charts as inline SVG: several series, linear or log scale, values under the pointer.

A long series is drawn as the mean per pixel column with a band from its least to its greatest
value (`downsample`). Colours are classes (`s0`, `s1`, ...), so that the style sheet decides them,
for light and for dark.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepseek.deploy.report.axis import Axis, linear_axis, log_axis
from deepseek.deploy.report.downsample import Downsampled, downsample
from deepseek.deploy.report.markup import text
from deepseek.deploy.report.quantity import Unit, number

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 40
NUM_COLORS = 6
LARGEST = 1e100  # beyond, the arithmetic of ticks overflows; such a value is no measurement


@dataclass(frozen=True)
class Series:
    """Points (P,) of one line; `has_markers` draws a dot on each."""

    name: str
    x: np.ndarray
    y: np.ndarray
    has_markers: bool = False


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_name: str = "step",
    unit: Unit | None = None,
    is_log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Return a `<figure>`, or an empty string where no series has a finite point.

    Args:
        series: what to draw; the first is the bluest.
        title: heading, plain text.
        x_name: what the horizontal axis counts.
        unit: of the values.
        is_log: logarithmic vertical scale; values that are not above 0 are left out.
        marks: places on the horizontal axis to mark, and what happened there.
    """
    unit = unit or Unit()
    lines = []
    for entry in series:
        y = entry.y * unit.factor
        keep = (np.abs(entry.x) < LARGEST) & (np.abs(y) < LARGEST) & ((y > 0) | (not is_log))
        if keep.any():
            lines.append((entry, downsample(entry.x[keep], y[keep])))
    if not lines:
        return ""
    x_axis = linear_axis(
        min(float(line.x[0]) for _, line in lines),
        max(float(line.x[-1]) for _, line in lines),
        count=6,
        is_rounded=False,
    )
    low = min(float(line.low.min()) for _, line in lines)
    high = max(float(line.high.max()) for _, line in lines)
    y_axis = log_axis(low, high) if is_log else linear_axis(low, high)
    summary = "; ".join(_describe(entry.name, line, unit, x_name) for entry, line in lines)
    drawn = "".join(
        _draw(at % NUM_COLORS, entry, line, x_axis, y_axis)
        for at, (entry, line) in enumerate(lines)
    )
    return _figure(
        title, summary, _legend([entry.name for entry, _ in lines], is_log),
        f"{_frame(x_axis, y_axis, x_name, unit.symbol)}{_marks(marks, x_axis)}{drawn}",
        [_hover(entry, line, x_axis, y_axis, unit) for entry, line in lines], x_name,
    )  # fmt: skip


def stacked_chart(
    series: Sequence[Series], *, title: str, x_name: str, unit: Unit | None = None
) -> str:
    """Return a `<figure>` of areas upon each other, the first at the bottom; empty without points.

    Of a long series the moment with the highest sum stands for each pixel column.

    Args:
        series: with the same `x` (P,), rising; `y` (P,) of 0 and more.
        title: heading, plain text.
        x_name: what the horizontal axis counts.
        unit: of the values.
    """
    unit = unit or Unit()
    values = np.array([entry.y for entry in series]) * unit.factor
    if not values.size or not np.isfinite(values).all() or (np.abs(values) >= LARGEST).any():
        return ""
    keep = _highest_moments(series[0].x, values.sum(axis=0))
    x, values = series[0].x[keep], values[:, keep]
    tops = np.cumsum(values, axis=0)
    x_axis = linear_axis(float(x[0]), float(x[-1]), count=6, is_rounded=False)
    y_axis = linear_axis(0.0, float(tops.max()))
    drawn, hovers, words = [], [], []
    below = np.zeros_like(x)
    for at, (entry, top) in enumerate(zip(series, tops, strict=True)):
        px, upper = _place(x, top, x_axis, y_axis)
        _, lower = _place(x, below, x_axis, y_axis)
        outline = np.concatenate([px, px[::-1]]), np.concatenate([upper, lower[::-1]])
        drawn.append(f'<path class="fill s{at % NUM_COLORS}" d="{_path(*outline)}Z"/>')
        own = Downsampled(x, values[at], values[at], values[at], (x[-1], values[at][-1]), False)
        hovers.append({
            **_hover(entry, own, x_axis, y_axis, unit),
            "py": [round(float(y), 1) for y in upper],
        })  # fmt: skip
        words.append(f"{entry.name}: up to {Unit(unit.symbol).show(float(values[at].max()))}")
        below = top
    peak = int(tops[-1].argmax())
    words.append(
        f"together up to {Unit(unit.symbol).show(float(tops[-1][peak]))} at {x_name} {x[peak]:,.1f}"
    )
    return _figure(
        title, "; ".join(words), _legend([entry.name for entry in series], is_log=False),
        f"{_frame(x_axis, y_axis, x_name, unit.symbol)}{''.join(drawn)}",
        hovers, x_name,
    )  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A place in a scatter chart.

    Attributes:
        x, y: where it is.
        label: a few characters beside it.
        words: what it is, shown under the pointer.
        group: of the points of one colour.
        is_hollow: drawn as a ring.
        interval: where it may lie along y, from and to.
    """

    x: float
    y: float
    label: str
    words: str
    group: str
    is_hollow: bool = False
    interval: tuple[float, float] | None = None


def scatter_chart(
    points: Sequence[Point],
    *,
    title: str,
    x_name: str,
    summary: str,
    unit: Unit | None = None,
    is_log: bool = False,
    line: Sequence[tuple[float, float]] = (),
    least_top: float = 0.0,
) -> str:
    """Return a `<figure>` of single points, or an empty string where there are none.

    Args:
        points: what to draw.
        title: heading, plain text.
        x_name: of the horizontal axis, with its unit.
        summary: the chart in words.
        unit: of `y`.
        is_log: logarithmic horizontal scale.
        line: places (x, y) to join.
        least_top: a value of `y` up to which the axis reaches in any case.
    """
    unit = unit or Unit()
    if not points:
        return ""
    x = np.array([point.x for point in points])
    y = np.array([point.y for point in points]) * unit.factor
    x_axis = (log_axis if is_log else linear_axis)(float(x.min()), float(x.max()))
    ends = [end for point in points for end in point.interval or ()]
    reached = [end * unit.factor for end in (*ends, least_top)]
    y_axis = linear_axis(min(*y, *reached), max(*y, *reached))
    groups = list(dict.fromkeys(point.group for point in points))
    drawn = []
    if len(line) > 1:
        px, py = _place(
            np.array([at for at, _ in line]), np.array([at for _, at in line]) * unit.factor,
            x_axis, y_axis,
        )  # fmt: skip
        drawn.append(f'<path class="mark" fill="none" d="{_path(px, py)}"/>')
    for point, cx, cy in zip(points, *_place(x, y, x_axis, y_axis), strict=True):
        color = groups.index(point.group) % NUM_COLORS
        drawn.append(_bar(point, cx, y_axis, unit, color))
        # a label on the other side is lifted above that of the point before
        side, shift, lift = (" end", -8, 18) if cx > WIDTH - RIGHT - 24 else ("", 8, 6)
        drawn.append(
            f'<circle class="{"ring" if point.is_hollow else "dot"} s{color}" cx="{cx:.1f}"'
            f' cy="{cy:.1f}" r="5"><title>{text(point.words)}</title></circle>'
            f'<text class="tick{side}" x="{cx + shift:.1f}" y="{cy - lift:.1f}">'
            f"{text(point.label)}</text>"
        )
    return (
        f'<figure class="card chart"><figcaption><h3>{text(title)}</h3>'
        f'{_legend(groups, is_log)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{text(title)}. {text(summary)}">'
        f"{_frame(x_axis, y_axis, x_name, unit.symbol)}{''.join(drawn)}</svg>"
        f'<p class="note">{text(summary)}</p></figure>'
    )


def _bar(point: Point, cx: float, y_axis: Axis, unit: Unit, color: int) -> str:
    if point.interval is None:
        return ""
    ends = np.array(point.interval) * unit.factor
    _, (y1, y2) = _place(np.full(2, 0.0), ends, y_axis, y_axis)
    return f'<line class="line s{color}" x1="{cx:.1f}" x2="{cx:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _highest_moments(x: np.ndarray, total: np.ndarray, num_columns: int = 240) -> np.ndarray:
    """Return the place of the highest total (P,) of each of at most `num_columns` columns."""
    if len(x) <= num_columns or x[0] == x[-1]:
        return np.arange(len(x))
    column = ((x - x[0]) * (num_columns / (x[-1] - x[0]))).astype(np.int64)
    order = np.lexsort((-total, np.minimum(column, num_columns - 1)))
    return np.sort(
        order[np.flatnonzero(np.diff(column[order].clip(max=num_columns - 1), prepend=-1))]
    )


def _figure(
    title: str, summary: str, legend: str, inside: str, hovers: list[dict], x_name: str
) -> str:
    data = {"x": x_name, "series": hovers}
    return (
        f"<figure class=\"card chart\" data-chart='{_attribute(data)}'>"
        f"<figcaption><h3>{text(title)}</h3>{legend}"
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0"'
        f' aria-label="{text(title)}. {text(summary)}.">{inside}'
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/></svg>'
        f'<p class="note">{text(summary)}.</p></figure>'
    )


def should_be_log(*values: np.ndarray) -> bool:
    """Return whether values, each (P,), spread so far that a linear scale would hide the small."""
    present = [entry for entry in values if len(entry)]
    if not present or min(entry.min() for entry in present) <= 0:
        return False
    typical = min(float(np.quantile(entry, 0.05)) for entry in present)
    return max(float(entry.max()) for entry in present) / typical > 30


def _place(line_x: np.ndarray, line_y: np.ndarray, x_axis: Axis, y_axis: Axis):
    px = LEFT + x_axis.place(line_x) * (WIDTH - LEFT - RIGHT)
    py = HEIGHT - BOTTOM - y_axis.place(line_y) * (HEIGHT - TOP - BOTTOM)
    return px, py


def _path(px: np.ndarray, py: np.ndarray) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in zip(px, py, strict=True))


def _draw(color: int, entry: Series, line: Downsampled, x_axis: Axis, y_axis: Axis) -> str:
    px, py = _place(line.x, line.mean, x_axis, y_axis)
    out = ""
    if line.is_reduced:
        _, high = _place(line.x, line.high, x_axis, y_axis)
        _, low = _place(line.x, line.low, x_axis, y_axis)
        outline = np.concatenate([px, px[::-1]]), np.concatenate([high, low[::-1]])
        out += f'<path class="band s{color}" d="{_path(*outline)}Z"/>'
    out += f'<path class="line s{color}" d="{_path(px, py)}"/>'
    if len(px) == 1 or (entry.has_markers and len(px) <= 60):
        out += "".join(
            f'<circle class="dot s{color}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
            for x, y in zip(px, py, strict=True)
        )
    return out


def _frame(x_axis: Axis, y_axis: Axis, x_name: str, symbol: str) -> str:
    """Gridlines, tick labels and the names of the axes."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    out = []
    _, py = _place(np.full(len(y_axis.ticks), x_axis.low), np.array(y_axis.ticks), x_axis, y_axis)
    for y, label in zip(py, tick_labels(y_axis.ticks), strict=True):
        out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick end" x="{LEFT - 8}" y="{y:.1f}" dy=".32em">{label}</text>')
    ticks = np.array(x_axis.ticks)
    px, _ = _place(ticks, np.full(len(ticks), y_axis.low), x_axis, y_axis)
    for x, label in zip(px, tick_labels(x_axis.ticks), strict=True):
        out.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 17}">{label}</text>')
    out.append(f'<line class="base" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    out.append(f'<text class="name end" x="{right}" y="{HEIGHT - 6}">{text(x_name)}</text>')
    if symbol:
        out.append(f'<text class="name" x="4" y="{HEIGHT - 6}">in {text(symbol)}</text>')
    return "".join(out)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Return short labels that still tell the ticks apart."""
    labels = [number(tick) for tick in ticks]
    if len(set(labels)) < len(labels):
        labels = [f"{tick:.12g}" for tick in ticks]
    return labels


def _marks(marks: Sequence[tuple[float, str]], x_axis: Axis) -> str:
    out = []
    for x, what in marks:
        if x_axis.low <= x <= x_axis.high:
            px = LEFT + float(x_axis.place(np.array(x))) * (WIDTH - LEFT - RIGHT)
            out.append(
                f'<line class="mark" x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
                f"<title>{text(what)}</title></line>"
            )
    return "".join(out)


def _legend(names: Sequence[str], is_log: bool) -> str:
    entries = [
        f'<li><i class="swatch s{at % NUM_COLORS}"></i>{text(name)}</li>'
        for at, name in enumerate(names)
    ]
    if is_log:
        entries.append('<li class="quiet">log scale</li>')
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _hover(entry: Series, line: Downsampled, x_axis: Axis, y_axis: Axis, unit: Unit) -> dict:
    """What the page's script shows under the pointer: places in SVG units, values as text."""
    px, py = _place(line.x, line.mean, x_axis, y_axis)
    values = [Unit(unit.symbol).show(value) for value in line.mean]
    if line.is_reduced:
        values = [
            f"{value} ({number(low)} to {number(high)})"
            for value, low, high in zip(values, line.low, line.high, strict=True)
        ]
    return {
        "name": entry.name,
        "px": [round(float(x), 1) for x in px],
        "py": [round(float(y), 1) for y in py],
        "x": [f"{x:,.0f}" if abs(x) < 1e15 else number(x) for x in line.x],
        "y": values,
    }


def _describe(name: str, line: Downsampled, unit: Unit, x_name: str) -> str:
    """The chart in words, for those who do not see it and for print."""
    show = Unit(unit.symbol).show
    low, high = float(line.low.min()), float(line.high.max())
    last = f"{show(float(line.last[1]))} at {x_name} {line.last[0]:,.0f}"
    return f"{name}: {show(low)} to {show(high)}, last {last}" if high > low else f"{name}: {last}"


def _attribute(data: object) -> str:
    """JSON for an attribute in single quotes: half the size of one in double quotes."""
    plain = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return (
        plain.replace("&", "&amp;").replace("'", "&#39;").replace("<", "&lt;").replace(">", "&gt;")
    )
