"""`deepseek reproduce`: a published figure, reached again or not."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deepseek.reproduce import Paper, Reproduction

EXIT_NOT_REACHED = 1


def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="What to run; all are listed without.")
    ] = None,
    papers: Annotated[
        Path, typer.Option("--from", metavar="DIR", help="Folder reproduce of a clone.")
    ] = Path("reproduce"),
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data sets; DEEPSEEK_TEST_DATA by default."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/reproduce-NAME-N by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run what reaches a published figure, and compare.

    Exits with 1 where the figure is not reached.
    """
    from deepseek.errors import ConfigError
    from deepseek.reproduce import find_paper, read_papers

    known = read_papers(papers)
    if name is None:
        ignored = {"--data": data, "--run-dir": run_dir}
        given = [option for option, value in ignored.items() if value is not None]
        if given:
            raise ConfigError(
                f"{', '.join(given)} without a NAME: nothing would be run", fix="give a NAME"
            )
        _list(known, as_json)
        return
    found = _run(name, find_paper(name, known), papers, data, run_dir, as_json)
    if as_json:
        print(json.dumps({**found.as_json(), "run": str(found.run)}))
    else:
        print_outcome(found)
    raise typer.Exit(0 if found.is_reached else EXIT_NOT_REACHED)


def _list(known: "dict[str, Paper]", as_json: bool) -> None:
    if as_json:
        body = {
            name: {**paper.model_dump(), "status": paper.status()} for name, paper in known.items()
        }
        print(json.dumps(body))
        return
    width = max(map(len, known))
    for name, paper in known.items():
        expected = ", ".join(figure.describe() for figure in paper.figures)
        place = "GPU  " if paper.gpu else "CPU  "
        print(f"{name:<{width}}  {place}{expected}; {paper.status()}")


def _run(
    name: str, paper: "Paper", papers: Path, data: Path | None, run_dir: Path | None, is_quiet: bool
) -> "Reproduction":
    from deepseek.reproduce import reproduce as run
    from deepseek.reproduce.reproduction import DATA_VARIABLE

    if data is None and os.environ.get(DATA_VARIABLE):
        data = Path(os.environ[DATA_VARIABLE])
    say = (lambda line: None) if is_quiet else (lambda line: print(line, flush=True))
    say(f"{paper.title}, {paper.authors} {paper.year}; time: {paper.time}")
    return run(name, paper, papers, data, run_dir or _free_folder(name), say)


def _free_folder(name: str) -> Path:
    number = 1
    while (folder := Path("runs", f"reproduce-{name}-{number}")).exists():
        number += 1
    return folder


def print_outcome(found: "Reproduction") -> None:
    """Print expected, reached and the verdict, a line for each figure."""
    for outcome in found.outcomes:
        verdict = "reached" if outcome.is_reached else "NOT reached"
        reached = f"{outcome.reached:.6g} {outcome.unit}".rstrip()
        print(f"{outcome.name}\n  expected {outcome.expected}\n  reached  {reached}: {verdict}")
    print(f"{found.took_s:.0f} s; {found.run}/result.json, {found.run}/log.txt")
