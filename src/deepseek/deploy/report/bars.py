"""Horizontal bars as inline SVG, each with its name above and its value behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

from deepseek.deploy.report.chart import NUM_COLORS
from deepseek.deploy.report.markup import shorten, text

WIDTH, ROW, BAR, TOP = 560, 44, 16, 6
LABEL_WIDTH = 170
"""Kept free behind the longest bar."""


@dataclass(frozen=True)
class Bar:
    """A bar.

    Attributes:
        name: what it stands for, plain text.
        value: its length, 0 or more.
        label: the value in words.
        color: number of the colour.
        limit: what the value could be at most, drawn pale behind it.
    """

    name: str
    value: float
    label: str
    color: int = 0
    limit: float | None = None


def bar_chart(bars: Sequence[Bar], *, title: str, unit: str) -> str:
    """Return a `<figure>`, or an empty string where there are no bars.

    Args:
        bars: from top to bottom.
        title: heading, plain text.
        unit: of all values.
    """
    if not bars:
        return ""
    longest = max(max(bar.value, bar.limit or 0.0) for bar in bars) or 1.0
    scale = (WIDTH - LABEL_WIDTH) / longest
    height = TOP + ROW * len(bars)
    drawn = []
    for at, bar in enumerate(bars):
        y = TOP + ROW * at
        length, end = bar.value * scale, max(bar.value, bar.limit or 0.0) * scale
        color = f"s{bar.color % NUM_COLORS}"
        drawn.append(f'<text class="name" x="0" y="{y + 12}">{text(shorten(bar.name, 70))}</text>')
        if bar.limit is not None:
            drawn.append(
                f'<rect class="band {color}" x="0" y="{y + 18}" width="{bar.limit * scale:.1f}"'
                f' height="{BAR}"/>'
            )
        drawn.append(
            f'<rect class="fill {color}" x="0" y="{y + 18}" width="{length:.1f}" height="{BAR}">'
            f"<title>{text(bar.name)}: {text(bar.label)}</title></rect>"
            f'<text class="tick" x="{end + 8:.1f}" y="{y + 30}">{text(bar.label)}</text>'
        )
    words = "; ".join(f"{bar.name}: {bar.label}" for bar in bars)
    return (
        f'<figure class="card chart"><figcaption><h3>{text(title)}</h3>'
        f'<span class="quiet">{text(unit)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{text(title)}. {text(words)}">'
        f"{''.join(drawn)}</svg></figure>"
    )
