"""The settings of volumes: where they are, how they are prepared, what is cut out of them."""

from typing import Annotated, Literal

from pydantic import Field

from deepseek.config.settings import Auto, Number, Settings, Whole, unit


class VolumeDataConfig(Settings):
    """Training and validation data: volumes with a class for every voxel."""

    format: Literal["volume"]
    """Kind of data."""
    train: str = Field(min_length=1)
    """Path of the training data: a folder with `images` and `labels`, or a CSV file."""
    val: Annotated[Number, Field(gt=0, lt=1)] | Annotated[str, Field(min_length=1)] | None = Field(
        default="auto", json_schema_extra=unit("share of the training data")
    )
    """Validation data: a path, or a share of the patients of `train`. `auto`: 0.1. `null`: none.

    They are whole volumes, prepared as those of `train`.
    """
    split_by: Literal["auto", "patient", "volume"] = "auto"
    """What a share does not divide. `auto`: patients where they are known, else volumes."""
    transform: str = Field(default="zscore+patch_64x64x64", min_length=1)
    """What is done to each volume, and how patches are cut, such as `spacing_1x1x1+zscore`."""
    class_names: list[str] | None = None
    """The classes in the order of their numbers. `null`: from `dataset.json`, else numbers."""
    foreground_share: Number = Field(
        default=0.33, ge=0, le=1, json_schema_extra=unit("share of the patches")
    )
    """How many patches are centred on a voxel of a class but the first."""
    patches_per_volume: Whole = Field(default=1, ge=1, json_schema_extra=unit("patches"))
    """Samples of each volume in an epoch."""
    max_voxels: Whole = Field(default=2**29, ge=1, json_schema_extra=unit("voxels"))
    """Voxels of a volume above which its file is refused unread."""
    cache: str = Field(default="auto", min_length=1)
    """Where prepared volumes are kept: a folder, `off`, or `auto`: the user's cache folder."""
    num_workers: Annotated[Whole, Field(ge=0)] | Auto = Field(
        default="auto", json_schema_extra=unit("processes")
    )
    """Processes that prepare batches. 0: the training process itself."""
