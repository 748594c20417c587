"""The settings of nodule cubes: where they are, which are validated on, what is learnt of them."""

from typing import Annotated, Literal

from pydantic import Field

from deepseek.config.settings import Auto, Number, Settings, Whole, unit


class NoduleDataConfig(Settings):
    """Training and validation data: cubes of CT with a nodule each, divided by patient."""

    format: Literal["nodules"]
    """Kind of data."""
    train: str = Field(min_length=1)
    """Path of the cubes: a `.npz` file, or its folder; or of scans that they are cut from: a folder
    in the layout of LUNA16, or of DICOM series or volumes with `annotations.csv`."""
    targets: Literal["centers", "masks"] = "centers"
    """What is learnt: where nodules are and how large, or their outlines."""
    fold: Whole | None = Field(default=0, ge=0)
    """Which part of the patients is validated on, from 0. `null`: none."""
    num_folds: Whole = Field(default=5, ge=2, json_schema_extra=unit("parts"))
    """Parts that the patients are divided into; the same ones for any seed."""
    transform: str = Field(
        default="patch_40x40x40+flip+rotate_20+scale_0.2+brightness_0.1+gamma_0.2+noise_0.05",
        min_length=1,
    )
    """How crops are cut and changed, in the string language of volumes."""
    negative_share: Number = Field(
        default=0.25, ge=0, le=1, json_schema_extra=unit("share of the crops")
    )
    """How many crops hold no nodule. With `masks` such a crop has an empty mask."""
    crops_per_cube: Whole = Field(default=1, ge=1, json_schema_extra=unit("crops"))
    """Samples of each cube in an epoch."""
    scores: tuple[str, ...] = ()
    """Scores of radiologists to be learnt beside centres, such as `malignancy` and `texture`; the
    model needs `num_scores` as many. Where a cube lacks one, that score has no loss."""
    max_voxels: Whole = Field(default=2**29, ge=1, json_schema_extra=unit("voxels"))
    """Voxels of all cubes together above which the file is refused unread."""
    cube_voxels: Whole = Field(default=51, ge=8, json_schema_extra=unit("voxels of 1 mm"))
    """Along each side of the cubes that are cut from scans."""
    negatives_per_scan: Whole = Field(default=2, ge=0, json_schema_extra=unit("cubes"))
    """Of scans: cubes without a nodule, of candidates whose `class` is 0; without a file of
    candidates at random places of the lungs."""
    cache: str = Field(default="auto", min_length=1)
    """Where cubes of scans are kept. `auto`: in the user's cache folder; `off`: nowhere; or a
    folder."""
    num_workers: Annotated[Whole, Field(ge=0)] | Auto = Field(
        default="auto", json_schema_extra=unit("processes")
    )
    """Processes that prepare batches. 0: the training process itself."""
