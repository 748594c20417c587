"""`deepseek bench`: what this machine gives, and what our defaults reach of it."""

import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deepseek.bench import BenchResult


def bench(
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="Time for all of it: 30s, 2m.")
    ] = "2m",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto: an accelerator.")] = "auto",
    folder: Annotated[
        Path, typer.Option(help="Whose disk is measured: where runs are written.")
    ] = Path(),
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with pictures.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what this machine gives, and what training with our defaults reaches of it."""
    from deepseek.config.duration import parse_duration
    from deepseek.errors import ConfigError

    try:
        budget_s = parse_duration(budget)
    except ValueError as error:
        raise ConfigError(f"--budget: {error}", fix="write --budget 90s, or 2m") from error
    from deepseek.bench import bench_machine
    from deepseek.bench.page import check_page, write_page

    if html is not None:
        check_page(html)
    with _progress() as on_begin:
        result = bench_machine(budget_s, folder=folder, device=device, on_begin=on_begin)
    if html is not None:
        write_page(result, html)
    if as_json:
        print(json.dumps(result.as_json()))
        return
    print_result(result)
    if html is not None:
        print(f"\n{html}")


@contextmanager
def _progress() -> "Iterator[Callable[[str], None]]":
    """Say on stderr what is measured: in a line that moves on a terminal, else in one each."""
    from rich.console import Console

    console = Console(stderr=True)
    if not sys.stderr.isatty():
        yield lambda name: print(f"measuring {name}", file=sys.stderr, flush=True)
        return
    with console.status("measuring") as status:
        yield lambda name: status.update(f"measuring {name}")


def print_result(result: "BenchResult") -> None:
    """Print two tables, and what was left out."""
    from rich.console import Console

    from deepseek.bench.page import describe_machine, rate_text, share_text
    from deepseek.deploy.report.quantity import number

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(describe_machine(result.machine), markup=False, soft_wrap=True)
    rows = [(rate.name, rate_text(rate), rate.remark) for rate in result.rates]
    _print_table(console, ("machine", "rate", "of"), rows, ("rate",))
    rows = [
        (
            rate.model, rate.batch, rate.precision, number(1000 * rate.step_s),
            number(rate.samples_per_s), number(rate.tflops), share_text(rate),
            f"{rate.data_wait_share:.0%}",
        )
        for rate in result.training
    ]  # fmt: skip
    heads = (
        "training", "batch", "precision", "step ms", "samples/s", "TFLOP/s", "of matmul", "data",
    )  # fmt: skip
    _print_table(console, heads, rows, heads[3:])
    for words in result.warnings:
        console.print(f"warning: {words}", markup=False, soft_wrap=True)
    for name, why in result.left_out:
        console.print(f"left out: {name}: {why}", markup=False, soft_wrap=True)
    console.print(f"measured in {result.took_s:.0f} s of {result.budget_s:.0f} s", markup=False)


def _print_table(console, heads, rows, numeric) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(box=SIMPLE_HEAD)
    for head in heads:
        table.add_column(head, justify="right" if head in numeric else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
