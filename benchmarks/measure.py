"""What every benchmark shares: the machine it ran on, medians, one markdown table or JSON."""

import argparse
import contextlib
import io
import json
import logging
import platform
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles

import torch


def machine() -> dict[str, object]:
    """Return chip, threads and versions that the numbers belong to; of a GPU, its host's too."""
    capabilities = torch.cpu.get_capabilities()
    cpu = capabilities.get("cpu_name") or _cpu_model() or platform.machine()
    chips = {"chip": cpu}
    if torch.cuda.is_initialized():  # which a run on the CPU has not done
        chips = {"chip": torch.cuda.get_device_name(), "cpu": cpu}
    packages = ("torch", "lightning", "accelerate", "transformers", "timm")
    found: dict[str, object] = {
        **chips,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


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
    """Print the table with machine and notes, or everything as JSON, or write that to a file.

    `--json` prints JSON; `--json FILE` writes what `tools/benchmarks_page.py` makes a page of, and
    prints the table as well.
    """
    if args.json:
        found = _as_json(args, records, table, notes)
        # where data lie on a machine is nobody's business
        body = json.dumps(found, indent=1, ensure_ascii=False, default=lambda path: path.name)
        if args.json == "-":
            print(body)
            return
        Path(args.json).write_text(body + "\n", encoding="utf-8")
    print(f"{table}\n\n{notes}\nMachine: {machine_line()}.")


def _as_json(args: argparse.Namespace, records: list[dict], table: str, notes: str) -> dict:
    main = sys.modules["__main__"]
    program = Path(sys.argv[0]).stem
    words = [
        Path(word).name if Path(word).is_absolute() else word
        for at, word in enumerate(sys.argv[1:])
        if not _is_json(sys.argv[1:], at)
    ]
    return {
        "title": (main.__doc__ or program).strip().splitlines()[0].rstrip("."),
        "benchmark": program,
        "command": shlex.join(["python", f"benchmarks/{program}.py", *words]),
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "settings": {name: value for name, value in vars(args).items() if name != "json"},
        "notes": notes,
        "table": table,
        "records": records,
    }


def _is_json(words: Sequence[str], at: int) -> bool:
    """Whether a word of the command is `--json`, or its file."""
    is_value = at > 0 and words[at - 1] == "--json" and not words[at].startswith("--")
    return words[at].split("=")[0] == "--json" or is_value


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
