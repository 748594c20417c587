"""The page of a plan: pictures, candidates, and how far to trust them, in one HTML file.

It looks like the report of a run, and like it forbids itself everything but its own style.
"""

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from deepseek.errors import ConfigError
from deepseek.planner.accuracy import VALIDATION
from deepseek.planner.explanation import GIB, Loss, say_plan
from deepseek.planner.pictures import draw_memory, draw_scaling, draw_timeline
from deepseek.planner.plan_report import PlanReport
from deepseek.planner.plan_text import describe_axes, describe_pipeline, shorten_pipeline
from deepseek.planner.quantity import show_bytes, show_seconds
from deepseek.planner.scaling import plan_sizes
from deepseek.planner.search import Candidate
from deepseek.planner.timeline import draw_up
from deepseek.version import __version__
from deepseek.whole_file import replacing

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none';"
    " form-action 'none'"
)
COMMUNICATION = ("tp", "cp", "pp", "dp")
TOP = 20


def write_page(report: PlanReport, path: Path) -> None:
    """Write the page to `path`, in one move.

    Raises:
        ConfigError: `path` is not an HTML file in a folder that exists.
    """
    if path.suffix not in (".html", ".htm") or not path.absolute().parent.is_dir():
        raise ConfigError(
            f"--html {path}: not an .html file in a folder that exists.", fix="give FILE.html"
        )
    with replacing(path) as draft:
        draft.write_text(render_page(report), encoding="utf-8")


def render_page(report: PlanReport) -> str:
    """Return the HTML of the page."""
    style = (resources.files("deepseek.planner") / "page.css").read_text(encoding="utf-8")
    chosen = report.found.best or report.found.least
    sections = [_tiles(report, chosen)] if chosen else []
    if chosen is not None:
        sections += [
            _timeline_section(report, chosen),
            _memory_section(report, chosen),
            _scaling_section(report),
            _candidates_section(report),
            _losses_section(report),
        ]
    sections.append(_trust_section(report))
    title = escape(report.shape.name)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title} · plan</title>\n<style>{style}</style></head>\n"
        f'<body><header><p class="kicker">Plan</p><h1>{title}</h1>'
        f'<p class="lead">{escape(report.describe_model())}<br>'
        f"{escape(report.describe_cluster())}<br>{escape(report.describe_search())}"
        f"<br>{escape(report.describe_host())}</p>"
        f"{_warning(report)}</header><main>{''.join(sections)}</main>"
        f"<footer>Predicted by deepseek {escape(__version__)}; nothing was measured.</footer>"
        "</body></html>\n"
    )


def _warning(report: PlanReport) -> str:
    words = [report.source.note] if report.source.note else []
    if report.found.best is None:
        words.append(report.describe_need())
    return "".join(f'<p class="warning">{escape(word)}</p>' for word in words)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _tiles(report: PlanReport, chosen: Candidate) -> str:
    prediction = chosen.prediction
    share = prediction.peak_bytes / report.cluster.gpu.memory_bytes
    tiles = [
        ("plan", describe_axes(chosen.plan), describe_pipeline(chosen.plan)),
        ("step", f"{prediction.step_s:.3g} s", f"recompute {chosen.plan.recompute}"),
        ("tokens per second", f"{prediction.tokens_per_s_per_gpu:,.0f}", "of each GPU"),
        ("MFU", f"{prediction.mfu:.1%}", f"HFU {prediction.hfu:.1%}"),
        ("memory", show_bytes(prediction.peak_bytes), f"{share:.0%} of the device"),
    ]
    if report.tokens:
        usd = report.count_usd(prediction)
        money = f"{usd:,.0f} USD" if usd else ""
        tiles.append(("time for all tokens", f"{report.count_days(prediction):,.1f} d", money))
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for name, value, more in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _timeline_section(report: PlanReport, chosen: Candidate) -> str:
    plan = chosen.plan
    passes = draw_up(report.shape, report.cluster, plan, chosen.prediction)
    note = (
        "Boxes have their predicted length, with communication that nothing hides; numbers are"
        " micro-batches, paler boxes later stages of a rank, and grey is waiting."
    )
    if plan.puts_off_weights:
        note += " This order was found by taking turns; the paper's, which is costed, is shorter."
    body = f'<div class="card">{draw_timeline(passes, plan)}<p class="note">{note}</p></div>'
    return _section("Timeline of a step", body)


def _memory_section(report: PlanReport, chosen: Candidate) -> str:
    picture = draw_memory(chosen.prediction, report.limit_bytes, report.cluster.gpu.memory_bytes)
    return _section("Memory by pipeline rank", f'<div class="card">{picture}</div>')


def _scaling_section(report: PlanReport) -> str:
    points = plan_sizes(report.shape, report.cluster, report.batch_size, report.space)
    tokens = report.batch_size * report.shape.context_length
    charts = draw_scaling(points, tokens, report.cluster.num_gpus)
    absent = [f"{point.num_gpus:,}" for point in points if point.best is None]
    note = "Planned anew for every number of GPUs, with the same batch."
    if absent:
        note += f" Nothing fits or divides on {', '.join(absent)} GPUs."
    body = f'<div class="charts">{"".join(charts)}</div><p class="note">{note}</p>'
    return _section("Scaling", body)


def _candidates_section(report: PlanReport) -> str:
    head = ["plan", "pipeline", "batch", "recompute", "step s", "comp", "comm", "bubble"]
    head += ["again", "optim", "GiB", "tok/s/GPU", "MFU", *(["days"] if report.tokens else [])]
    rows, best = [], report.found.best
    for candidate in report.shown(TOP):
        plan, prediction = candidate.plan, candidate.prediction
        times = prediction.time_s
        communication_s = sum(times[name] for name in COMMUNICATION)
        others = (times["bubble"], times["recompute"], times["optimizer"] + times["host"])
        cells = [
            describe_axes(plan),
            shorten_pipeline(plan),
            f"{plan.num_micro_batches} x {plan.micro_batch_size}",
            plan.recompute + (f", offload {plan.offload}" if plan.offload != "none" else ""),
            *map(show_seconds, (prediction.step_s, times["compute"], communication_s, *others)),
            f"{prediction.peak_bytes / GIB:.1f}",
            f"{prediction.tokens_per_s_per_gpu:,.0f}",
            f"{prediction.mfu:.1%}",
        ]
        cells += [f"{report.count_days(prediction):,.1f}"] if report.tokens else []
        rows.append((cells, candidate is best))
    note = (
        f"Seconds: comp, computation; comm, communication that nothing hides; again,"
        f" recomputation; optim, optimizer, sums of gradients, and the host."
        f" batch: micro-batches x sequences."
        f" {report.mfu_convention}. The marked plan is the choice."
    )
    body = f'{_table(head, rows, 4)}<p class="note">{escape(note)}</p>'
    return _section("Candidates", f'<div class="card">{body}</div>')


def _losses_section(report: PlanReport) -> str:
    def rows(losses: Sequence[Loss]) -> list[tuple[list[str], bool]]:
        return [([loss.name, say_plan(loss.candidate.plan), loss.why], False) for loss in losses]

    body = ""
    for name, losses in (("family", report.losses), ("one change", report.changes)):
        if losses:
            table = _table([name, "best of it", "why it lost"], rows(losses), 99)
            body += f'<div class="card">{table}</div>'
    return _section("Why the others lost", body) if body else ""


def _trust_section(report: PlanReport) -> str:
    rows = [
        ([entry.table, str(entry.num_rows), str(entry.num_fitted), f"{entry.mean:.2f} %",
          f"{entry.worst:.2f} %"], False)
        for entry in VALIDATION
    ]  # fmt: skip
    head = ["published table", "rows", "fitted", "mean error", "worst"]
    body = f"<p>{escape(report.describe_error())}</p>{_table(head, rows, 1)}"
    return _section("How far to trust it", f'<div class="card">{body}</div>')


def _table(head: Sequence[str], rows: Sequence[tuple[list[str], bool]], numbers_from: int) -> str:
    """A table of plain text; columns from `numbers_from` on are numbers; `True` marks a row."""

    def kind(at: int) -> str:
        return ' class="num"' if at >= numbers_from else ""

    names = "".join(
        f'<th scope="col"{kind(at)}>{escape(name)}</th>' for at, name in enumerate(head)
    )
    body = ""
    for cells, is_marked in rows:
        first = f'<th scope="row">{escape(cells[0])}</th>'
        rest = "".join(f"<td{kind(at)}>{escape(cell)}</td>" for at, cell in enumerate(cells[1:], 1))
        mark = ' class="best"' if is_marked else ""
        body += f"<tr{mark}>{first}{rest}</tr>"
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
