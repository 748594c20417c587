"""The page of a bench: rates, what training reaches of them, and bars, in one HTML file."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from deepseek.bench.result import BenchResult, Rate, TrainingRate
from deepseek.deploy.report.bars import Bar, bar_chart
from deepseek.deploy.report.markup import Section, fold, table, text
from deepseek.deploy.report.page import assemble_page
from deepseek.deploy.report.quantity import number
from deepseek.errors import ConfigError
from deepseek.version import __version__
from deepseek.whole_file import replacing


def check_page(path: Path) -> None:
    """Refuse a path that no page can be written to.

    Raises:
        ConfigError: it is not an HTML file in a folder that exists.
    """
    if path.suffix not in (".html", ".htm") or not path.absolute().parent.is_dir():
        raise ConfigError(
            f"--html {path}: not an .html file in a folder that exists", fix="give FILE.html"
        )


def write_page(result: BenchResult, path: Path) -> None:
    """Write the page to `path`, in one move.

    Raises:
        ConfigError: `path` is not an HTML file in a folder that exists.
    """
    check_page(path)
    with replacing(path) as draft:
        draft.write_text(render_page(result), encoding="utf-8")


def render_page(result: BenchResult) -> str:
    """Return the HTML of the page."""
    chip = result.machine.get("gpu") or result.machine.get("processor") or "this machine"
    notes = "".join(f'<p class="warning">{text(words)}</p>' for words in result.warnings)
    head = (
        f'<header><p class="kicker">deepseek bench</p><h1>{text(chip)}</h1>'
        f'<p class="lead">{text(describe_machine(result.machine))}</p>{notes}</header>'
    )
    sections = [_training(result), _machine(result), *_left_out(result), _environment(result)]
    return assemble_page(
        f"{chip} · bench", head, sections,
        f"Measured by deepseek {__version__} in {result.took_s:.0f} s.",
    )  # fmt: skip


def describe_machine(machine: dict[str, str]) -> str:
    """Return chip, threads and torch in one line."""
    words = [machine["gpu"]] if "gpu" in machine else []
    words += [f"{machine['processor']}, {machine['threads']} threads, {machine['isa']}"]
    return " · ".join([*words, f"torch {machine['torch']}"])


def share_text(rate: TrainingRate) -> str:
    """Return the share of the best matrix product, or a dash."""
    return "–" if rate.matmul_share is None else f"{rate.matmul_share:.0%}"


def _training(result: BenchResult) -> Section:
    rates = result.training
    bars = [
        Bar(rate.model, rate.tflops, f"{number(rate.tflops)} TFLOP/s, {share_text(rate)}", at % 6,
            limit=result.matmul_tflops(rate.precision))
        for at, rate in enumerate(rates)
    ]  # fmt: skip
    chart = bar_chart(
        bars, title="What our defaults reach, and the best matrix product behind it",
        unit="TFLOP/s",
    )  # fmt: skip
    head = ("Model", "Batch", "Precision", "Step, ms", "Samples/s", "TFLOP/s", "Of matmul",
            "Waiting for data", "Steps")  # fmt: skip
    rows = [
        (
            rate.model, rate.batch, rate.precision, number(1000 * rate.step_s),
            number(rate.samples_per_s), number(rate.tflops), share_text(rate),
            f"{rate.data_wait_share:.0%}", rate.num_steps,
        )
        for rate in rates
    ]  # fmt: skip
    body = _table(head, rows, "Training of standard models", range(3, 9))
    return Section(
        "training", "Training with our defaults",
        f'<div class="charts">{chart}</div>{body}' if rates else "",
        "nothing was trained.",
    )  # fmt: skip


def _machine(result: BenchResult) -> Section:
    charts = []
    for unit, title in (("TFLOP/s", "Matrix products"), ("GB/s", "Memory and collectives"),
                        ("MB/s", "Disk"), ("images/s", "Decoding")):  # fmt: skip
        own = [rate for rate in result.rates if rate.unit == unit]
        bars = [Bar(rate.name, rate.value, rate_text(rate), at) for at, rate in enumerate(own)]
        charts.append(bar_chart(bars, title=title, unit=unit))
    rows = [(rate.name, rate_text(rate), rate.remark) for rate in result.rates]
    body = _table(("What", "Rate", "Of"), rows, "Rates of the machine")
    return Section(
        "machine", "What the machine gives",
        f'<div class="charts">{"".join(charts)}</div>{body}' if rows else "",
        "nothing was measured.",
    )  # fmt: skip


def rate_text(rate: Rate) -> str:
    """Return a rate with its unit."""
    return f"{number(rate.value)} {rate.unit}"


def _left_out(result: BenchResult) -> list[Section]:
    if not result.left_out:
        return []
    body = _table(("What", "Why"), result.left_out, "Not measured")
    return [Section("left-out", "Not measured", body)]


def _environment(result: BenchResult) -> Section:
    body = _table(("Name", "Value"), result.machine.items(), "Environment")
    return Section("environment", "Environment", fold("Machine and versions", body))


def _table(
    head: Sequence[str], rows: Iterable[Sequence[object]], caption: str, numeric: Sequence[int] = ()
) -> str:
    """Return a table of plain texts."""
    cells = [[text(cell) for cell in row] for row in rows]
    return table(head, cells, caption=caption, numeric=numeric)
