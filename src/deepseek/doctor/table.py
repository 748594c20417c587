"""The table of verdicts, the catalogue of checks, and what `--json` prints."""

import re
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepseek.doctor.finding import Check, Finding, Verdict

STYLES = {
    Verdict.OK: "green",
    Verdict.NOTE: "cyan",
    Verdict.WARNING: "yellow",
    Verdict.PROBLEM: "bold red",
}


def print_table(findings: list[Finding], console: Console | None = None) -> None:
    """Print the findings, the worst last: there the eye is when the command ends."""
    console = console or Console()
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in sorted(findings, key=lambda finding: finding.verdict.severity):
        style = STYLES[finding.verdict]
        # Text, not markup: what other programs say may hold brackets.
        words = Text(finding.what)
        if finding.mend:
            words.append(f"\nmend: {finding.mend}", style="dim")
        table.add_row(Text(finding.verdict, style), Text(finding.name), words)
    console.print(table)
    console.print(Text(summary(findings)))


def summary(findings: list[Finding]) -> str:
    """Return how many there are of each verdict, the worst first."""
    counts = Counter(finding.verdict for finding in findings)
    shown = ", ".join(
        f"{counts[verdict]} {verdict}{'s' * (counts[verdict] > 1 and verdict is not Verdict.OK)}"
        for verdict in reversed(Verdict)
        if counts[verdict]
    )
    return f"{shown or 'nothing found'}."


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """Return the findings with their stable names, and the worst verdict."""
    worst = max((finding.verdict for finding in findings), key=lambda verdict: verdict.severity)
    return {"verdict": worst, "findings": [finding.as_json() for finding in findings]}


def exit_code(findings: list[Finding]) -> int:
    """Return 1 where there is a problem, else 0."""
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def catalogue(checks: tuple[Check, ...]) -> str:
    """Return the table of all checks for the documentation, as Markdown."""
    rows = [
        f"| `{check.name}` | {_escaped(check.asks)} | {_escaped(check.mend)} |" for check in checks
    ]
    return "\n".join(["| check | what must hold | mend |", "|---|---|---|", *rows])


def _escaped(text: str) -> str:
    return re.sub(r"([*|<])", r"\\\1", text)
