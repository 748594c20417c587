"""`deepseek config`: the schema of a configuration, and a check that starts nothing."""

import json
from pathlib import Path
from typing import Annotated

import typer

from deepseek.cli.model_options import AsJson

app = typer.Typer(no_args_is_help=True, help="Check a configuration; print its schema.")


@app.command("schema")
def schema(
    output: Annotated[Path | None, typer.Option(help="File to write; else it is printed.")] = None,
) -> None:
    """Print the JSON schema of model_config.yaml: every setting, its unit and its default."""
    from deepseek.config import json_schema

    text = json.dumps(json_schema(), indent=2)
    if output is None:
        print(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {output}")


@app.command("check")
def check(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for mistakes in a configuration, model arguments included; start nothing."""
    from deepseek.cli.model_args import check_args
    from deepseek.cli.train import split_arguments
    from deepseek.config import ConfigFileError, dump_config, read_config

    path, overrides = split_arguments(arguments or [])
    try:
        loaded = read_config(path, overrides, check_args=check_args)
    except ConfigFileError as error:
        if as_json:
            print(json.dumps({"ok": False, "problems": [_as_json(p) for p in error.problems]}))
            raise typer.Exit(error.exit_code) from error
        raise
    if as_json:
        print(json.dumps({"ok": True, "config": loaded.config.model_dump(mode="json")}))
        return
    print(dump_config(loaded.config), end="")
    for change in loaded.changes:
        print(f"# changed: {change}")
    print(f"# {path}: no problems")


def _as_json(problem) -> dict:
    source = problem.place.source
    return {
        "source": source.name if source.is_file else source.lines[0],
        "line": problem.line,
        "column": problem.column,
        "code": problem.code,
        "message": problem.what,
        "hint": problem.hint,
    }
