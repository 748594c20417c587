"""`deepseek features`: a table -> a feature spec to read and edit."""

from pathlib import Path
from typing import Annotated

import typer

from deepseek.cli.table_settings import TableSettings


def features(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="File, folder or pattern.")],
    settings: TableSettings = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Column to learn; may be repeated.")
    ] = None,
    cross: Annotated[
        list[str] | None, typer.Option(help="Pair of categories, as user_id*genre.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Column to leave out.")] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Find vocabularies, means and ranges, too.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
) -> None:
    """Say what the columns of a table are taken for."""
    from deepseek.cli.model_output import check_output_file
    from deepseek.config.feature_file import dump_features
    from deepseek.datasets import ColumnSource, fit_features, infer_features
    from deepseek.datasets.table_reading import TableOptions

    if output is not None:
        check_output_file(output)
    source = ColumnSource(table, TableOptions().changed(settings or []))
    crosses = [pair.split("*") for pair in cross or []]
    spec = infer_features(source, label or None, crosses=crosses, ignore=ignore or [])
    if fit:
        spec = fit_features(spec, source)
    text = dump_features(spec)
    if output is None:
        print(text, end="")
        return
    output.write_text(text, encoding="utf-8")
    entries = sum(map(len, (spec.sparse, spec.dense, spec.sequence, spec.cross)))
    print(f"{output}: {entries} features, labels {', '.join(spec.label)}")
