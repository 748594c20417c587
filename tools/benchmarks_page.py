"""Write docs/benchmarks.md from `benchmarks/results/*.json` and `reproduce/*/paper.yaml`.

A result is what a benchmark writes with `--json FILE`; those with `source` were recorded from a
page of the docs.
"""

import argparse
import json
import sys
from pathlib import Path

from deepseek.reproduce import Paper, read_papers

ROOT = Path(__file__).parents[1]
RESULTS, PAPERS, PAGE = "benchmarks/results", "reproduce", "docs/benchmarks.md"
REQUIRED = ("title", "benchmark", "command", "machine", "date", "notes", "table")
HEAD = """\
# Benchmarks

What was recorded, rows that we lose included, with machine, versions and settings. The page is
made of `benchmarks/results` by `python tools/benchmarks_page.py`; further figures stand on the
pages of their subjects, with how they were measured. On GPUs a part has been measured: the machine
stands with each table. What your own machine gives is measured by [`deepseek bench`](bench.md).

A benchmark records itself, and the page is made again:

<!-- not run: takes minutes -->
```bash
python benchmarks/loop_overhead.py --json benchmarks/results/loop_overhead.json
python tools/benchmarks_page.py
```
"""
PAPERS_HEAD = """\
## Reproduced papers

Figures that others published, and what our run of them reached: [how to run them](reproduce.md).

| name | paper | figure | expected | newest run |
|---|---|---|---|---|
"""


def read_results(folder: Path) -> list[dict]:
    """Return all results, by their titles.

    Raises:
        ValueError: one lacks an entry, or names a folder of the machine.
    """
    results = []
    for file in sorted(folder.glob("*.json")):
        text = file.read_text(encoding="utf-8")
        result = json.loads(text)
        missing = [name for name in REQUIRED if not result.get(name)]
        if missing:
            raise ValueError(f"{file.name}: no {', '.join(missing)}")
        if '"/' in text:
            raise ValueError(f"{file.name} names a folder of the machine it was written on")
        results.append(result)
    return sorted(results, key=lambda result: result["title"])


def render_result(result: dict) -> str:
    """Return the section of a result."""
    machine = result["machine"]
    if isinstance(machine, dict):
        machine = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [f"## {result['title']}", "", result["table"], "", result["notes"], ""]
    lines.append(f"- command: `{result['command']}`")
    lines.append(f"- machine: {machine}")
    if result.get("settings"):
        settings = ", ".join(f"{name}={value}" for name, value in result["settings"].items())
        lines.append(f"- settings: {settings}")
    if "source" in result:
        page = result["source"].removeprefix("docs/")
        link = f"[{page}]({page})" if result["source"].startswith("docs/") else f"`{page}`"
        lines.append(f"- recorded from {link}, {result['date']}")
    else:
        lines.append(f"- date: {result['date']}")
    return "\n".join(lines) + "\n"


def render_papers(papers: dict[str, Paper]) -> str:
    """Return the table of papers, a row for each figure."""
    rows = []
    for name, paper in papers.items():
        who = f"{paper.authors.split(',')[0]} {paper.year}"
        if paper.arxiv:
            who = f"[{who}](https://arxiv.org/abs/{paper.arxiv})"
        newest = paper.measured[-1] if paper.measured else None
        for at, figure in enumerate(paper.figures):
            reached = "not run"
            if newest is not None:
                verdict = "reached" if figure.is_reached(newest.values[at]) else "**not reached**"
                value = figure.show(newest.values[at])
                reached = f"{value}, {verdict}; {newest.date}, {newest.machine}, {newest.time}"
            rows.append(f"| `{name}` | {who} | {figure.name} | {figure.describe()} | {reached} |\n")
    return PAPERS_HEAD + "".join(rows)


def render_page(root: Path = ROOT) -> str:
    """Return the page."""
    results = map(render_result, read_results(root / RESULTS))
    return "\n".join([HEAD, render_papers(read_papers(root / PAPERS)), *results])


def main() -> None:
    """Write the page, or with `--check` say whether it is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is old")
    page, text = ROOT / PAGE, render_page()
    if parser.parse_args().check:
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE} is not what its results say: run python tools/benchmarks_page.py")
        return
    page.write_text(text, encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
