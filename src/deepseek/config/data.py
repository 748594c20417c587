"""The settings of pictures: where they are, how they are cut, what is done to each."""

from typing import Annotated, Literal

from pydantic import Field

from deepseek.config.settings import Auto, Number, Settings, Whole, unit


class DataConfig(Settings):
    """Training and validation data: pictures."""

    format: Literal["image", "table", "text", "volume", "nodules", "multi"] = "image"
    """Kind of data; the others have settings of their own; `multi` is data of several tasks."""
    train: str = Field(min_length=1)
    """Path of the training data, or the name of a built-in data set such as `digits`."""
    val: Annotated[Number, Field(gt=0, lt=1)] | Annotated[str, Field(min_length=1)] | None = Field(
        default="auto", json_schema_extra=unit("share of the training data")
    )
    """Validation data: a path, or a share of `train` split off with equal class shares.

    `auto`: the folder `val`, `validation` or `test` beside `train`, or a share of 0.1.
    `null`: none.
    """
    transform: str = Field(default="resize_224", min_length=1)
    """What is done to each training sample, such as `resize_224`."""
    val_transform: str = Field(default="auto", min_length=1)
    """What is done to each validation sample. `auto`: `transform` without its random parts."""
    channels: Literal[1, 3] = 3
    """Colour channels of an image: 1 for grey, 3 for RGB."""
    num_workers: Annotated[Whole, Field(ge=0)] | Auto = Field(
        default="auto", json_schema_extra=unit("processes")
    )
    """Processes that load and decode data. 0: in the training process itself."""
    on_bad_sample: Literal["error", "skip"] = "error"
    """What happens when a sample cannot be read."""
    max_bad_share: Number = Field(
        default=0.01, ge=0, le=1, json_schema_extra=unit("share of the samples")
    )
    """With `on_bad_sample: skip`, the share of unreadable samples at which the run stops."""
