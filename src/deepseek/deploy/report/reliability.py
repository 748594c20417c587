"""The reliability diagram: accuracy against confidence, and the samples behind each bar."""

import numpy as np

from deepseek.deploy.report.calibration import Calibration
from deepseek.deploy.report.quantity import percent

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP = 62, 16, 14
PLOT, GAP, HISTOGRAM = 236, 22, 62


def reliability_diagram(result: Calibration) -> str:
    """Return the diagram as an `<svg>`: accuracy per bin, gaps, the diagonal, counts below."""
    inner = WIDTH - LEFT - RIGHT
    bottom = TOP + PLOT
    floor = bottom + GAP + HISTOGRAM
    largest = max(int(result.count.max()), 1)
    out = [_grid(inner, bottom, floor)]
    for at in np.flatnonzero(result.count):
        left = LEFT + inner * result.edges[at] + 1
        width = inner * (result.edges[at + 1] - result.edges[at]) - 2
        accuracy, confidence = float(result.accuracy[at]), float(result.confidence[at])
        count = int(result.count[at])
        what = (
            f"confidence {percent(result.edges[at], 0)} to"
            f" {percent(result.edges[at + 1], 0)}: {count:,} samples,"
            f" mean confidence {percent(confidence)}, accuracy {percent(accuracy)}"
        )
        low, high = sorted((accuracy, confidence))
        tall = HISTOGRAM * count / largest
        out.append(
            f"<g><title>{what}</title>"
            f'<rect class="fill s0" x="{left:.1f}" width="{width:.1f}"'
            f' y="{bottom - PLOT * accuracy:.1f}"'
            f' height="{PLOT * accuracy:.1f}"/>'
            f'<rect class="gap" x="{left:.1f}" width="{width:.1f}" y="{bottom - PLOT * high:.1f}"'
            f' height="{PLOT * (high - low):.1f}"/>'
            f'<rect class="count" x="{left:.1f}" width="{width:.1f}" y="{floor - tall:.1f}"'
            f' height="{tall:.1f}"/></g>'
        )
    out.append(f'<line class="diagonal" x1="{LEFT}" y1="{bottom}" x2="{LEFT + inner}" y2="{TOP}"/>')
    label = (
        f"Reliability diagram over {int(result.count.sum()):,} samples in {len(result.count)} bins:"
        f" expected calibration error {percent(result.ece)}, maximum {percent(result.mce)}"
    )
    return (
        f'<svg class="reliability" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(out)}</svg>"
    )


def _grid(inner: int, bottom: int, floor: int) -> str:
    right = LEFT + inner
    out = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, x = bottom - PLOT * share, LEFT + inner * share
        out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(
            f'<text class="tick end" x="{LEFT - 8}" y="{y:.1f}" dy=".32em">{100 * share:.0f}</text>'
        )
        anchor = "end" if share == 1 else "mid"
        out.append(
            f'<text class="tick {anchor}" x="{x:.1f}" y="{floor + 17}">{100 * share:.0f}</text>'
        )
    for y in (bottom, floor):
        out.append(f'<line class="base" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
    out.append(f'<text class="name" x="{LEFT + 6}" y="{TOP + 14}">accuracy, %</text>')
    out.append(f'<text class="name" x="{LEFT + 6}" y="{bottom + GAP - 5}">samples per bin</text>')
    out.append(f'<text class="name end" x="{right}" y="{floor + 34}">confidence, %</text>')
    return "".join(out)
