"""What `fit` returns: a record per epoch that prints and draws itself."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 520, 200, 44
COLORS = {"loss": "#0072b2", "val_loss": "#d55e00", "val_accuracy": "#009e73"}


class History(Sequence[dict]):
    """The epochs of a run, oldest first; each is a dict of numbers (`loss`, `val_accuracy`, ...).

    In a notebook it shows as curves and a table; `plot()` gives the curves as SVG.

    Args:
        records: one dict per epoch.
        run_dir: folder of the run.
        monitor: metric that says which epoch is best.
        higher_is_better: its direction.
        status: `finished`, `stopped: REASON`.
    """

    def __init__(
        self,
        records: list[dict],
        run_dir: Path,
        monitor: str,
        higher_is_better: bool,
        status: str = "finished",
    ) -> None:
        self.records = records
        self.run_dir = run_dir
        self.monitor = monitor
        self.higher_is_better = higher_is_better
        self.status = status

    def __getitem__(self, index):
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def best(self) -> dict:
        """The epoch with the best monitored metric; the last one where it was never measured."""
        measured = [
            record for record in self.records if not math.isnan(record.get(self.monitor, math.nan))
        ]
        if not measured:
            return self.records[-1] if self.records else {}
        sign = 1 if self.higher_is_better else -1
        return max(measured, key=lambda record: sign * record[self.monitor])

    def series(self, name: str) -> list[float]:
        """Return one metric over the epochs that have it."""
        return [record[name] for record in self.records if name in record]

    def plot(self, path: str | Path | None = None) -> str:
        """Return the curves as SVG, and write them to `path` where given."""
        losses = {name: self.series(name) for name in ("loss", "val_loss")}
        panels = [_panel("loss", losses, 0)]
        if self.series(self.monitor) and self.monitor not in losses:
            panels.append(_panel(self.monitor, {self.monitor: self.series(self.monitor)}, WIDTH))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(panels)}" '
            f'height="{HEIGHT}" font-family="sans-serif" font-size="11">{"".join(panels)}</svg>'
        )
        if path is not None:
            Path(path).write_text(svg, encoding="utf-8")
        return svg

    def __repr__(self) -> str:
        best = self.best
        shown = ", ".join(
            f"{name}={best[name]:.4g}"
            for name in ("loss", "val_loss", self.monitor)
            if name in best
        )
        return (
            f"History({len(self)} epochs, best epoch {best.get('epoch')}: {shown}; {self.run_dir})"
        )

    def _repr_html_(self) -> str:
        names = [n for n in ("epoch", "loss", "val_loss", "val_accuracy", "lr") if self.series(n)]
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        rows = "".join(
            "<tr>" + "".join(f"<td>{record.get(name, ''):.4g}</td>" for name in names) + "</tr>"
            for record in self.records[-20:]
            if all(name in record for name in names)
        )
        return f"{self.plot()}<table><tr>{head}</tr>{rows}</table>"


def _panel(title: str, series: dict[str, list[float]], left: int) -> str:
    """One chart: lines over epochs, the range of values written at the axis."""
    values = [value for line in series.values() for value in line if value == value]
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    inner_width, inner_height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    parts = [
        f'<g transform="translate({left + MARGIN},{MARGIN})">',
        f'<text y="-12" font-weight="bold">{escape(title)}</text>',
        f'<rect width="{inner_width}" height="{inner_height}" fill="none" stroke="#bbb"/>',
        f'<text x="-4" y="8" text-anchor="end">{high:.3g}</text>',
        f'<text x="-4" y="{inner_height}" text-anchor="end">{low:.3g}</text>',
    ]
    for number, (name, line) in enumerate(series.items()):
        if not line:
            continue
        step = inner_width / max(1, len(line) - 1)
        points = " ".join(
            f"{i * step:.1f},{inner_height * (1 - (value - low) / span):.1f}"
            for i, value in enumerate(line)
        )
        color = COLORS.get(name, "#0072b2")
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{60 + 90 * number}" y="-12" fill="{color}">{escape(name)}</text>')
    return "".join(parts) + "</g>"
