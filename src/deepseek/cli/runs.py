"""`deepseek runs`: the runs of this folder, and what two of them differ in."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from deepseek.cli.model_options import AsJson
from deepseek.cli.run_folders import (
    CONFIG,
    RUNS,
    RunRecord,
    find_run,
    find_runs,
    flat_settings,
    read_record,
)

app = typer.Typer(invoke_without_command=True, help="List runs; compare two of them.")
Root = Annotated[Path, typer.Option(help="Folder of the runs.")]


@app.callback()
def runs(context: typer.Context, root: Root = RUNS, as_json: AsJson = False) -> None:
    """List the runs, newest last; or compare two of them."""
    if context.invoked_subcommand is not None:
        context.obj = root
        return
    records = [read_record(run) for run in find_runs(root)]
    if as_json:
        print(json.dumps([record.as_json() for record in records]))
    elif not records:
        print(f"no runs in {root}/ yet; start one with `deepseek train`")
    else:
        _print_table(
            ("run", "status", "epochs", "best", "duration", "started (UTC)"),
            [_row(record) for record in records],
        )


@app.command("compare")
def compare(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="A", help="Name or folder of a run.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Name or folder of another.")],
    as_json: AsJson = False,
) -> None:
    """Show the settings in which two runs differ, and their metrics side by side."""
    folders = [
        find_run(word, context.obj or RUNS, name) for word, name in ((first, "A"), (second, "B"))
    ]
    settings = [flat_settings(_read_config(run)) for run in folders]
    changed = {
        key: [side.get(key) for side in settings]
        for key in sorted({*settings[0], *settings[1]})
        if settings[0].get(key) != settings[1].get(key)
    }
    records = [read_record(run) for run in folders]
    if as_json:
        both = [record.as_json() for record in records]
        print(json.dumps({"runs": both, "settings": changed}))
        return
    names = [run.name for run in folders]
    if changed:
        rows = [(key, *(_shown(value) for value in values)) for key, values in changed.items()]
        _print_table(("setting", *names), rows)
    else:
        print("the settings are equal")
    metrics = sorted({*records[0].metrics, *records[1].metrics})
    rows = [(name, *(_figure(record.metrics.get(name)) for record in records)) for name in metrics]
    rows.append(("duration", *(_duration(record.duration_s) for record in records)))
    _print_table(("best metrics", *names), rows)


def _row(record: RunRecord) -> tuple[str, ...]:
    best = "-" if record.best is None else f"{record.monitor} {_figure(record.best)}"
    started = record.started.strftime("%Y-%m-%d %H:%M")
    duration = _duration(record.duration_s)
    return (record.path.name, record.status, str(record.epochs), best, duration, started)


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    # Plain columns, so that the output of a pipe is that of the terminal.
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _read_config(run: Path) -> dict[str, Any]:
    from deepseek.config.document import Source, read_document
    from deepseek.config.located import ConfigFileError, locate_fault

    text = (run / CONFIG).read_text(encoding="utf-8")
    document = read_document(text, Source(str(run / CONFIG), tuple(text.splitlines())))
    if document.faults:
        raise ConfigFileError([locate_fault(fault) for fault in document.faults])
    return document.values or {}


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m{rest:02d}s" if hours else f"{minutes}m{rest:02d}s"
