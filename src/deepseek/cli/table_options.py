"""Options of how the files of a table are read, for the commands that read tables."""

from typing import Annotated

import typer

Layout = Annotated[str | None, typer.Option(help="Of a table: auto, or criteo.")]
ColumnNames = Annotated[
    str | None,
    typer.Option(help="Of a table in a file without a header, commas between them."),
]
Delimiter = Annotated[str | None, typer.Option(help="Of a table in a text file.")]


def table_reading(
    layout: str | None, column_names: str | None, delimiter: str | None
) -> dict[str, str | list[str]]:
    """Return what was given, as arguments of `TableOptions`."""
    names = None if column_names is None else column_names.split(",")
    given = {"layout": layout, "column_names": names, "delimiter": delimiter}
    return {name: value for name, value in given.items() if value is not None}


def check_no_reading(reading: dict[str, str | list[str]], what: str) -> None:
    """Refuse options of tables where there is none.

    Raises:
        ConfigError: one was given.
    """
    for name, value in reading.items():
        from deepseek.errors import ConfigError

        shown = value if isinstance(value, str) else ",".join(value)
        raise ConfigError(
            f"--{name.replace('_', '-')}={shown} would be ignored: {what} is of no table",
            fix="leave it away",
        )
