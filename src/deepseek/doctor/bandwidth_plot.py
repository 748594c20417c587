"""Draws bus bandwidth by message size as SVG: both axes logarithmic, a line per collective.

Colours are of the palette of Okabe and Ito, told apart by the colour-blind; text and grid follow
the reader's light or dark scheme.
"""

import math
from html import escape
from pathlib import Path

from deepseek.doctor.bandwidth import Bandwidth, Measurement
from deepseek.doctor.bandwidth_table import header
from deepseek.doctor.message_sizes import size_text

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 140, 48, 52
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2")
MAX_SIZE_TICKS = 9
STYLE = (
    "text{fill:#333;font:12px sans-serif}.t{font-weight:bold;font-size:13px}"
    ".g{stroke:#ddd}.b{fill:#fff}.f{fill:none;stroke:#999}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.g{stroke:#3a3a3a}.b{fill:#161616}"
    ".f{stroke:#777}}"
)


class Axes:
    """Places sizes (bytes) and bandwidths (GB/s) in the picture, by their logarithms."""

    def __init__(self, rows: list[Measurement]) -> None:
        self.sizes = sorted({row.size_bytes for row in rows})
        values = [row.bus_gbs for row in rows if row.bus_gbs > 0] or [1.0]
        self.low = 10.0 ** math.floor(math.log10(min(values)))
        self.high = max(10.0 ** math.ceil(math.log10(max(values))), 10 * self.low)

    def x(self, size_bytes: float) -> float:
        """Return the place of a size."""
        span = math.log2(self.sizes[-1] / self.sizes[0]) or 1.0
        return LEFT + math.log2(size_bytes / self.sizes[0]) / span * (WIDTH - LEFT - RIGHT)

    def y(self, gbs: float) -> float:
        """Return the place of a bandwidth."""
        share = math.log10(max(gbs, self.low) / self.low) / math.log10(self.high / self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> list[str]:
        """Return lines and labels of both axes."""
        parts = []
        stride = math.ceil(len(self.sizes) / MAX_SIZE_TICKS)
        for size in self.sizes[::stride]:
            x = self.x(size)
            parts.append(_line(x, TOP, x, HEIGHT - BOTTOM))
            parts.append(_text(x, HEIGHT - BOTTOM + 17, size_text(size), "middle"))
        decade = self.low
        while decade <= self.high * 1.001:
            y = self.y(decade)
            parts.append(_line(LEFT, y, WIDTH - RIGHT, y))
            parts.append(_text(LEFT - 7, y + 4, f"{decade:g}", "end"))
            decade *= 10
        return parts


def draw_bandwidth(found: Bandwidth, path: Path | None = None) -> str:
    """Return the picture as SVG, and write it to `path` where given."""
    axes = Axes(found.rows)
    names = list(dict.fromkeys(row.collective for row in found.rows))
    parts = axes.grid()
    parts.append(
        f'<rect class="f" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}"'
        f' height="{HEIGHT - TOP - BOTTOM}"/>'
    )
    for index, name in enumerate(names):
        rows = [row for row in found.rows if row.collective == name]
        parts += _curve(axes, rows, index)
        y = TOP + 14 + 22 * index
        x = WIDTH - RIGHT + 12
        parts.append(_stroke(f"{x},{y - 4} {x + 22},{y - 4}", index))
        parts.append(_text(x + 28, y, name.replace("_", "-"), "start"))
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 14, "message size", "middle"))
    y = TOP + (HEIGHT - TOP - BOTTOM) / 2
    turned = f' transform="rotate(-90 16 {y:g})"'
    parts.append(_text(16, y, "bus bandwidth, GB/s", "middle", turned))
    title = header(found)
    parts.append(_text(LEFT, 26, title, "start", ' class="t"'))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        f' height="{HEIGHT}" role="img" aria-label="{escape(title)}"><style>{STYLE}</style>'
        f'<rect class="b" width="{WIDTH}" height="{HEIGHT}"/>{"".join(parts)}</svg>\n'
    )
    if path is not None:
        path.write_text(svg, encoding="utf-8")
    return svg


def _curve(axes: Axes, rows: list[Measurement], index: int) -> list[str]:
    places = [(axes.x(row.size_bytes), axes.y(row.bus_gbs)) for row in rows]
    color = COLORS[index % len(COLORS)]
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"><title>'
        f"{size_text(row.size_bytes)}: {row.bus_gbs:.3g} GB/s, {row.time_us:.0f} us</title>"
        "</circle>"
        for (x, y), row in zip(places, rows, strict=True)
    ]
    return [_stroke(" ".join(f"{x:.1f},{y:.1f}" for x, y in places), index), *dots]


def _stroke(points: str, index: int) -> str:
    dash = DASHES[index % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<polyline fill="none" stroke="{COLORS[index % len(COLORS)]}" stroke-width="2"{dashed}'
        f' points="{points}"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="g" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
