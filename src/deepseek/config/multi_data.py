"""The settings of data of several tasks: what each has, and how they are mixed."""

from typing import Annotated, Any, Literal

from pydantic import Field

from deepseek.config.settings import Auto, Number, Settings, Whole, unit


class MultiDataConfig(Settings):
    """Training and validation data: a data set for each of several tasks."""

    format: Literal["multi"]
    """Kind of data."""
    tasks: dict[str, dict[str, Any]] = Field(min_length=2)
    """Name of each task -> the settings of its data, as `data` has them for one task."""
    shared: dict[str, Any] = Field(default_factory=dict)
    """Settings that all tasks have, where they do not say otherwise. A tokenizer that is made from
    texts is made from those of all.
    """
    alpha: Number = Field(default=1.0, ge=0, le=1)
    """How a task's share of an epoch follows from its size: to this power. 1: every sample once."""
    val: Annotated[Number, Field(gt=0, lt=1)] | Auto | None = Field(
        default="auto", json_schema_extra=unit("share of the training data")
    )
    """Validation data of the tasks that do not say: a share of each. `auto`: as each kind of data
    has it. `null`: none, for all.
    """
    num_workers: Annotated[Whole, Field(ge=0)] | Auto = Field(
        default="auto", json_schema_extra=unit("processes")
    )
    """Processes that prepare batches. 0: the training process itself."""
