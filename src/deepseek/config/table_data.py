"""The settings of tables: where they are, how they are read, what their columns mean."""

from typing import Annotated, Literal

from pydantic import Field

from deepseek.config.settings import Auto, Number, Settings, Whole, unit

Name = Annotated[str, Field(min_length=1)]


class TableDataConfig(Settings):
    """Training and validation data: rows of a table."""

    format: Literal["table"]
    """Kind of data."""
    train: str = Field(min_length=1)
    """Path of the training data: a file, a folder or a pattern."""
    val: Annotated[Number, Field(gt=0, lt=1)] | Annotated[str, Field(min_length=1)] | None = Field(
        default="auto", json_schema_extra=unit("share of the training data")
    )
    """Validation data: a path, or a share of `train`: its last rows where there is a `time_column`,
    else any. `auto`: 0.1. `null`: none.
    """
    features: Name | None = None
    """Path of a feature spec, which says what the columns mean. `null`: found from `train`."""
    labels: list[Name] | None = None
    """Without `features`: columns to learn. `null`: `label`, `click`, `clicked` or `target`."""
    crosses: list[list[Name]] = Field(default_factory=list)
    """Without `features`: pairs of categories that count as one, such as `[[user_id, genre]]`."""
    ignore: list[Name] = Field(default_factory=list)
    """Without `features`: columns to leave out."""
    time_column: Name | None = None
    """When a row happened: numbers, or times; in text by ISO 8601."""
    layout: Literal["auto", "criteo"] = "auto"
    """How files are read: by the end of their names, or as Criteo's."""
    column_names: list[Name] | None = None
    """Of a text file without a header."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Of a text file. `null`: `,` in `.csv`, a tab in `.tsv`."""
    cache: str = Field(default="auto", min_length=1)
    """Where features are kept: a folder, `off`, or `auto`: the user's cache folder."""
    num_workers: Annotated[Whole, Field(ge=0)] | Auto = Field(
        default="auto", json_schema_extra=unit("processes")
    )
    """Processes that prepare batches. 0: the training process itself."""
