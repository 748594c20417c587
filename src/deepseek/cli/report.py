"""`deepseek report`: draw the report of a run again."""

import json
from typing import Annotated

import typer

from deepseek.cli.model_options import AsJson
from deepseek.cli.run_folders import find_run


def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Name or folder of a run, or latest.")
    ] = "latest",
    as_json: AsJson = False,
) -> None:
    """Draw report.html of a run again, from what is in its folder."""
    folder = find_run(run)
    from deepseek.deploy.report import write_report

    path = write_report(folder)
    print(json.dumps({"run": str(folder), "report": str(path)}) if as_json else path)
