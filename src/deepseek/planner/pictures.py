"""Pictures of a plan as inline SVG: who computes when, memory by rank, speed by number of GPUs.

Colours are classes (`s0`, `s1`, ...) that the page's style sheet decides, for light and for dark.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from deepseek.planner.parallel_plan import ParallelPlan
from deepseek.planner.plan_text import describe_axes
from deepseek.planner.prediction import Prediction
from deepseek.planner.scaling import ScalingPoint
from deepseek.planner.timeline import Pass

GIB = 2**30
WIDTH = 1100
LEFT, RIGHT = 64, 16
MOST_BOXES, MOST_ROWS = 6000, 16
ROW, GAP = 22, 26
CATEGORIES = {
    "weights": 0,
    "gradients": 1,
    "optimizer": 2,
    "activations": 3,
    "logits": 4,
    "buffers": 6,
}
COLORS = {"forward": 0, "backward": 2, "weights": 4, "communication": 3, "optimizer": 1, "host": 6}
WORDS = {
    "forward": "forward",
    "backward": "backward",
    "weights": "gradients of weights",
    "communication": "gradients over ranks",
    "optimizer": "optimizer and sums of gradients",
    "host": "copies to and from the host, and its own work",
}


def draw_timeline(passes: Sequence[Pass], plan: ParallelPlan) -> str:
    """Return who computes when; of a long step the beginning and the end."""
    total_s = max(entry.end_s for entry in passes)
    rows = _choose_rows(plan.pp)
    shown = [entry for entry in passes if entry.rank in rows]
    passes_s = max(entry.end_s for entry in passes if entry.kind in ("backward", "weights"))
    windows = _choose_windows(len(shown), passes_s, total_s)
    seconds = sum(end - start for start, end in windows)
    scale = (WIDTH - LEFT - RIGHT - GAP * (len(windows) - 1)) / seconds
    parts, left = [], float(LEFT)
    for number, (start, end) in enumerate(windows):
        if number:
            parts.append(_text(left - GAP / 2, 16, "⋯", "mid"))
        parts += _draw_window(shown, rows, (start, end), left, scale, plan)
        left += (end - start) * scale + GAP
    for row, rank in enumerate(rows):
        parts.append(_text(LEFT - 8, 34 + row * ROW, f"rank {rank}", "end"))
    height = 34 + len(rows) * ROW + 16
    label = f"Timeline of {plan.pp} pipeline ranks over {total_s:.3g} s"
    return _svg(height, label, parts) + _legend(
        (COLORS[kind], WORDS[kind]) for kind in WORDS if any(e.kind == kind for e in shown)
    )


def _choose_rows(pp: int) -> list[int]:
    """Ranks to draw: all, or some at equal distances with the first and the last."""
    count = min(pp, MOST_ROWS)
    return sorted({round(at * (pp - 1) / max(count - 1, 1)) for at in range(count)})


def _choose_windows(num_boxes: int, passes_s: float, total_s: float) -> list[tuple[float, float]]:
    """Seconds to draw: all, or as many from the beginning as before the end of the passes."""
    if num_boxes <= MOST_BOXES:
        return [(0.0, total_s)]
    each_s = passes_s * MOST_BOXES / num_boxes / 2
    return [(0.0, each_s), (passes_s - each_s, total_s)]


def _draw_window(
    passes: Sequence[Pass],
    rows: list[int],
    window: tuple[float, float],
    left: float,
    scale: float,
    plan: ParallelPlan,
) -> list[str]:
    start, end = window
    parts = [
        f'<rect class="idle" x="{left:.1f}" y="{20 + row * ROW}"'
        f' width="{(end - start) * scale:.1f}" height="{ROW - 3}"/>'
        for row in range(len(rows))
    ]
    for entry in passes:
        begin, finish = max(entry.start_s, start), min(entry.end_s, end)
        width = (finish - begin) * scale
        if width <= 0.05:
            continue
        x, y = left + (begin - start) * scale, 20 + rows.index(entry.rank) * ROW
        parts.append(_draw_box(entry, x, y, width, plan))
    bottom = 20 + len(rows) * ROW
    parts += [_text(left, bottom + 14, f"{start:.3g} s", ""), _text(
        left + (end - start) * scale, bottom + 14, f"{end:.3g} s", "end")]  # fmt: skip
    return parts


def _draw_box(entry: Pass, x: float, y: float, width: float, plan: ParallelPlan) -> str:
    is_pass = entry.kind in ("forward", "backward", "weights")
    turn = entry.stage // plan.pp
    # Later stages of a rank are paler.
    opacity = (
        0.95 - 0.5 * turn / max(plan.virtual_stages - 1, 1) if plan.virtual_stages > 1 else 0.9
    )
    name = f"{WORDS[entry.kind]}"
    if is_pass:
        name += f" of micro-batch {entry.micro_batch + 1}, stage {entry.stage}"
    box = (
        f'<rect class="box s{COLORS[entry.kind]}" x="{x:.1f}" y="{y}" width="{width:.2f}"'
        f' height="{ROW - 3}" opacity="{opacity:.2f}"'
    )
    # Nobody points at what is thinner than two pixels.
    hint = f"{name}: {1e3 * (entry.end_s - entry.start_s):.3g} ms"
    box += f"><title>{hint}</title></rect>" if width >= 2 else "/>"
    if is_pass and width > 9 * len(str(entry.micro_batch + 1)) + 2:
        box += (
            f'<text class="in mid" x="{x + width / 2:.1f}" y="{y + 14}">'
            f"{entry.micro_batch + 1}</text>"
        )
    return box


def draw_memory(prediction: Prediction, limit_bytes: float, device_bytes: float) -> str:
    """Return stacked bars, one for each pipeline rank, below the limit of the device."""
    names = list(prediction.memory[0])
    top, bottom, height = 14, 40, 320
    high = 1.06 * max(device_bytes, prediction.peak_bytes)
    scale = (height - top - bottom) / high
    pitch = min(200.0, (WIDTH - LEFT - RIGHT) / len(prediction.memory))
    base = height - bottom
    parts = []
    step = _nice(high / GIB / 5)
    for tick in range(int(high / GIB / step) + 1):
        y = base - tick * step * GIB * scale
        parts.append(_line("grid", LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(LEFT - 8, y + 4, f"{tick * step:g}", "end"))
    for rank, memory in enumerate(prediction.memory):
        y = base
        for name in names:
            tall = memory[name] * scale
            y -= tall
            x = LEFT + (rank + 0.1) * pitch
            parts.append(
                f'<rect class="fill s{CATEGORIES[name]}" x="{x:.1f}"'
                f' y="{y:.1f}" width="{0.8 * pitch:.1f}" height="{tall:.1f}"><title>rank {rank},'
                f" {name}: {memory[name] / GIB:.2f} GiB</title></rect>"
            )
        if rank % max(1, math.ceil(24 / pitch)) == 0:
            parts.append(_text(LEFT + (rank + 0.5) * pitch, base + 16, str(rank), "mid"))
    for value, words in ((device_bytes, "device"), (limit_bytes, "a plan may take")):
        y = base - value * scale
        words = f"{words}: {value / GIB:.1f} GiB"
        parts.append(_line("mark", LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(WIDTH - RIGHT, y - 4, words, "end"))
    parts += [
        _text(WIDTH - RIGHT, height - 6, "pipeline rank", "end"),
        _text(4, height - 6, "GiB", ""),
    ]
    return _svg(height, "Memory by pipeline rank and category", parts) + _legend(
        (CATEGORIES[name], name) for name in names
    )


def draw_scaling(points: Sequence[ScalingPoint], tokens_of_step: float, num_gpus: int) -> list[str]:
    """Return two charts over the number of GPUs: speed of each GPU, and seconds of a step."""
    found = [(point.num_gpus, point.best) for point in points if point.best is not None]
    if len(found) < 2:
        return []
    sizes = [size for size, _ in found]
    steps = [best.prediction.step_s for _, best in found]
    hints = {size: describe_axes(best.plan) for size, best in found}
    rates = [tokens_of_step / step / size for size, step in zip(sizes, steps, strict=True)]
    # What the step would take if the smallest number of GPUs scaled without loss.
    ideal = [steps[0] * sizes[0] / size for size in sizes]
    return [
        _draw_chart("Tokens per second and GPU", sizes, {"planned": rates}, hints, num_gpus),
        _draw_chart("Seconds of a step", sizes, {"planned": steps, "without loss": ideal}, hints,
                    num_gpus, is_log=True),
    ]  # fmt: skip


def _draw_chart(
    title: str,
    sizes: list[int],
    lines: Mapping[str, list[float]],
    hints: Mapping[int, str],
    mark: int,
    is_log: bool = False,
) -> str:
    width, height, top, bottom = 540, 280, 14, 44
    values = [value for line in lines.values() for value in line]
    low, high = (min(values), max(values)) if is_log else (0.0, 1.08 * max(values))
    ticks = _ticks(low, high, is_log)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x(size: float) -> float:
        span = math.log(sizes[-1] / sizes[0])
        return LEFT + math.log(size / sizes[0]) / span * (width - LEFT - RIGHT)

    def y(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if is_log else value / high
        return height - bottom - share * (height - top - bottom)

    parts = []
    for tick in ticks:
        parts += [_line("grid", LEFT, y(tick), width - RIGHT, y(tick)),
                  _text(LEFT - 8, y(tick) + 4, f"{tick:,g}", "end")]  # fmt: skip
    for at, size in enumerate(sizes):
        if (len(sizes) - 1 - at) % math.ceil(len(sizes) / 8) == 0:
            words = f"{size // 1024}k" if size % 1024 == 0 and size > 1024 else f"{size}"
            parts.append(_text(x(size), height - bottom + 17, words, "mid"))
    if sizes[0] <= mark <= sizes[-1]:
        parts.append(_line("mark", x(mark), top, x(mark), height - bottom))
    for color, (name, line) in enumerate(lines.items()):
        places = [(x(size), y(value)) for size, value in zip(sizes, line, strict=True)]
        path = "M" + "L".join(f"{px:.1f},{py:.1f}" for px, py in places)
        parts.append(f'<path class="line s{color}" d="{path}"/>')
        for (px, py), size, value in zip(places, sizes, line, strict=True):
            if color == 0:
                parts.append(
                    f'<circle class="dot s0" cx="{px:.1f}" cy="{py:.1f}" r="3.5"><title>{size:,}'
                    f" GPUs, {hints[size]}: {value:,.4g} ({name})</title></circle>"
                )
    parts.append(_text(width - RIGHT, height - 8, "GPUs", "end"))
    head = f"<figcaption><h3>{escape(title)}</h3>{_legend(enumerate(lines))}</figcaption>"
    return f'<figure class="card chart">{head}{_svg(height, title, parts, width)}</figure>'


def _ticks(low: float, high: float, is_log: bool) -> list[float]:
    if not is_log:
        step = _nice(high / 5)
        return [at * step for at in range(int(high / step) + 1)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if low * 0.99 <= tick <= high * 1.01]
    every = max(1, math.ceil(len(inside) / 7))
    return inside[::every] or [low, high]


def _nice(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next((digit * power for digit in (1, 2, 5) if raw <= digit * power), 10 * power)


def _svg(height: float, label: str, parts: Iterable[str], width: float = WIDTH) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img"'
        f' aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _legend(entries: Iterable[tuple[int, str]]) -> str:
    items = [f'<li><i class="swatch s{color}"></i>{escape(name)}</li>' for color, name in entries]
    return f'<ul class="legend">{"".join(items)}</ul>' if len(items) > 1 else ""


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    kind = f' class="{anchor}"' if anchor else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
