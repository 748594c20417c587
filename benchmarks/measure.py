"""What every benchmark shares: the machine it ran on, medians, one markdown table or JSON."""

import argparse
import contextlib
import io
import json
import logging
import platform
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from statistics import median, quantiles

import torch


def machine() -> dict[str, object]:
    """Return chip, threads and versions that the numbers belong to."""
    if torch.cuda.is_available():
        chip = torch.cuda.get_device_name()
    else:
        capabilities = torch.cpu.get_capabilities()
        chip = capabilities.get("cpu_name") or _cpu_model() or platform.machine()
    packages = ("torch", "lightning", "accelerate", "transformers", "timm")
    return {
        "chip": chip,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def _cpu_model() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line for line in file if line.startswith("model name")]
    except OSError:
        return None
    return lines[0].split(":", 1)[1].strip() if lines else None


def machine_line() -> str:
    """Return `machine()` as one line."""
    return ", ".join(f"{name} {value}" for name, value in machine().items())


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and half the distance between the quartiles."""
    if len(values) < 2:
        return values[0], 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return median(values), (high - low) / 2


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table; all columns but the first are flush right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def report(args: argparse.Namespace, records: list[dict], table: str, notes: str) -> None:
    """Print the table with machine and notes, or everything as JSON."""
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        body = {"machine": machine(), "settings": settings, "records": records, "notes": notes}
        print(json.dumps(body, indent=1))
        return
    print(f"{table}\n\n{notes}\nMachine: {machine_line()}.")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep the frameworks' own words off stdout and stderr, so that only the table is printed."""
    logging.disable(logging.WARNING)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
