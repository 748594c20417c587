"""What `deepseek plan` prints for people: tables of plans, and why the others lost."""

from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepseek.planner.explanation import GIB, Loss, find_worst_rank, say_plan
from deepseek.planner.plan_report import PlanReport
from deepseek.planner.plan_text import describe_axes, shorten_pipeline
from deepseek.planner.prediction import Prediction
from deepseek.planner.quantity import pick_unit, show_seconds
from deepseek.planner.search import TIE_SHARE, Candidate

MIN_WIDTH = 136
"""Characters of a line where nobody looks on, or the terminal is narrow."""
COMMUNICATION = ("tp", "cp", "pp", "dp")


def print_report(report: PlanReport, top: int, console: Console | None = None) -> None:
    """Print model, cluster, plans by time, their memory, and how far to trust them."""
    console = console or _make_console()
    said = report.describe_model(), report.describe_cluster(), report.describe_search()
    for line in filter(None, (*said, report.describe_host())):
        console.print(Text(line))
    if report.source.note:
        console.print(Text(f"note: {report.source.note}"))
    console.print()
    shown = report.shown(top)
    if not shown:
        least = report.found.least
        shown = [least] if least else []
        console.print(Text(report.describe_need(), "bold red"))
        console.print()
    console.print(_time_table(report, shown))
    console.print()
    console.print(_memory_table(report, shown))
    console.print()
    for line in _footnotes(report):
        console.print(Text(line, "dim"))


def print_explanation(report: PlanReport, console: Console | None = None) -> None:
    """Print the best plan of each family that lost, and what one change would do."""
    console = console or _make_console()
    best = report.found.best
    if best is not None:
        console.print(Text(f"\nchosen: {say_plan(best.plan)}", "bold"))
    if report.losses:
        console.print()
        console.print(_family_table(report.losses))
    if report.changes:
        table = _make_table(("one change", "name"), ("and then", "text"))
        for loss in report.changes:
            table.add_row(loss.name, loss.why)
        console.print()
        console.print(table)


def print_explanation_as_comments(report: PlanReport) -> None:
    """Print the same behind settings, which stay YAML."""
    text = StringIO()
    print_explanation(report, Console(file=text, width=MIN_WIDTH, highlight=False))
    for line in text.getvalue().splitlines():
        print(f"# {line}".rstrip())


def _make_console() -> Console:
    console = Console(highlight=False)
    return console if console.width >= MIN_WIDTH else Console(width=MIN_WIDTH, highlight=False)


def _make_table(*columns: tuple[str, str]) -> Table:
    """A table of (name, kind): `number` and `name` stay on one line, `text` may be broken."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, kind in columns:
        justify = "right" if kind == "number" else "left"
        table.add_column(name, justify=justify, no_wrap=kind != "text", overflow="fold")
    return table


def _time_table(report: PlanReport, shown: list[Candidate]) -> Table:
    has_money = bool(report.tokens and report.cluster.gpu_hour_usd)
    offloads = _uses_host(shown)
    numbers = ["step s", "comp", "comm", "bubble", "again", "optim"]
    numbers += [*(["host"] if offloads else []), "tok/s/GPU", "MFU"]
    numbers += ["days"] if report.tokens else []
    numbers += ["USD"] if has_money else []
    names = ["", "plan", "pipeline", "batch", "recompute", *(["offload"] if offloads else [])]
    table = _make_table(
        *((name, "name") for name in names),
        *((name, "number") for name in numbers),
    )
    for candidate in shown:
        plan, prediction = candidate.plan, candidate.prediction
        cells = [
            ">" if candidate is report.found.best else "",
            describe_axes(plan),
            shorten_pipeline(plan),
            f"{plan.num_micro_batches}x{plan.micro_batch_size}",
            plan.recompute,
            *([plan.offload] if offloads else []),
            *_time_cells(prediction, offloads),
        ]
        cells += [f"{report.count_days(prediction):,.1f}"] if report.tokens else []
        cells += [f"{report.count_usd(prediction):,.0f}"] if has_money else []
        table.add_row(*cells)
    return table


def _uses_host(shown: list[Candidate]) -> bool:
    return any(candidate.plan.offload != "none" for candidate in shown)


def _time_cells(prediction: Prediction, offloads: bool) -> list[str]:
    times = prediction.time_s
    communication = sum(times[name] for name in COMMUNICATION)
    seconds = (
        *(prediction.step_s, times["compute"], communication, times["bubble"]),
        *(times["recompute"], times["optimizer"]),
        *([times["host"]] if offloads else []),
    )
    return [
        *(show_seconds(value) for value in seconds),
        f"{prediction.tokens_per_s_per_gpu:,.0f}",
        f"{prediction.mfu:.1%}",
    ]


def _memory_table(report: PlanReport, shown: list[Candidate]) -> Table:
    names = list(shown[0].prediction.memory[0]) if shown else []
    unit, size = pick_unit(max((each.prediction.peak_bytes for each in shown), default=GIB))
    table = _make_table(
        ("", "name"),
        (f"{unit} of the fullest device", "name"),
        *((name, "number") for name in (*names, "sum", "of device")),
        *([("of node's host", "number")] if _uses_host(shown) else []),
    )
    for candidate in shown:
        prediction = candidate.prediction
        memory = prediction.memory[find_worst_rank(prediction)]
        share = prediction.peak_bytes / report.cluster.gpu.memory_bytes
        on_host = prediction.host_bytes * report.cluster.count_of_node
        table.add_row(
            ">" if candidate is report.found.best else "",
            describe_axes(candidate.plan),
            *(f"{memory[name] / size:,.1f}" for name in names),
            f"{prediction.peak_bytes / size:,.1f}",
            Text(f"{share:.0%}", "bold red" if prediction.peak_bytes > report.limit_bytes else ""),
            *([f"{on_host / GIB:,.0f}"] if _uses_host(shown) else []),
        )
    return table


def _footnotes(report: PlanReport) -> list[str]:
    best = report.found.best
    lines = [
        f"{report.mfu_convention}. comm: communication that nothing hides; again: recomputation;"
        " batch: micro-batches x sequences."
    ]
    if best is not None:
        lines.append(
            f"> is the choice: of plans within {TIE_SHARE:.0%} of the fastest, which the planner"
            " cannot tell apart, the one with the fewest axes."
        )
    lines.append(report.describe_error())
    return lines


def _family_table(losses: list[Loss]) -> Table:
    table = _make_table(("family", "name"), ("best of it", "text"), ("why it lost", "text"))
    for loss in losses:
        table.add_row(loss.name, say_plan(loss.candidate.plan), loss.why)
    return table
