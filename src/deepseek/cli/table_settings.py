"""Settings of how the files of a table are read, in the words of the configuration."""

from collections.abc import Sequence
from typing import Annotated

import typer

READING = ("layout", "column_names", "delimiter")
TableSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="How a table is read: layout=criteo, column_names=user,item,click, 'delimiter=;'.",
    ),
]


def is_table_setting(argument: str) -> bool:
    """Tell whether an argument that stands among paths is a setting."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and key in READING


def check_no_settings(settings: Sequence[str], what: str) -> None:
    """Refuse settings of tables where there is none.

    Raises:
        ConfigError: one was given.
    """
    if settings:
        from deepseek.errors import ConfigError

        raise ConfigError(
            f"{settings[0]} would be ignored: {what} is of no table", fix="leave it out"
        )
