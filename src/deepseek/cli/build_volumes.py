"""Settings of volumes -> data sets. Imported by commands when they run: it brings torch."""

from collections.abc import Sequence

from deepseek.cli.build_text import AUTO_VAL_SHARE, check_apart
from deepseek.config import VolumeDataConfig
from deepseek.datasets import DataSpec, VolumeDataset


def build_volumes(
    config: VolumeDataConfig, seed: int
) -> tuple[VolumeDataset, VolumeDataset | None]:
    """Return the training data and the validation data, `None` if there is to be none.

    Raises:
        ConfigError: if the validation data are the training data.
    """
    train = _dataset(config, config.train, seed, config.class_names)
    val = AUTO_VAL_SHARE if config.val == "auto" else config.val
    if val is None:
        return train, None
    if not isinstance(val, str):
        return train.split(val)
    check_apart(config.train, val, "folder")
    return train, _dataset(config, val, seed, train.class_names).evaluation_view()


def build_volume_evaluation(spec: DataSpec, path: str) -> VolumeDataset:
    """Return the labelled volumes at `path`, whole, as a model was trained on such."""
    patch = "x".join(str(size) for size in spec.fields["inputs"].shape[1:])
    steps = [spec.transform] if spec.transform else []
    dataset = VolumeDataset(
        path, transform="+".join([*steps, f"patch_{patch}"]), class_names=spec.class_names
    )
    return dataset.evaluation_view()


def _dataset(
    config: VolumeDataConfig, path: str, seed: int, class_names: Sequence[str] | None
) -> VolumeDataset:
    return VolumeDataset(
        path,
        transform=config.transform,
        class_names=class_names,
        foreground_share=config.foreground_share,
        patches_per_volume=config.patches_per_volume,
        seed=seed,
        max_voxels=config.max_voxels,
        cache=config.cache,
        split_by=config.split_by,
    )
