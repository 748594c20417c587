"""Settings of tables -> data sets. Imported by commands when they run: it brings torch."""

from collections.abc import Sequence

from deepseek.cli.build_text import AUTO_VAL_SHARE, check_apart
from deepseek.config import TableDataConfig
from deepseek.config.features import FeatureSpec
from deepseek.datasets import DataSpec, InteractionDataset


def build_tables(
    config: TableDataConfig, seed: int
) -> tuple[InteractionDataset, InteractionDataset | None]:
    """Return the training data and the validation data, `None` if there is to be none.

    The validation data have the feature spec of the training data.

    Raises:
        ConfigError: if the validation data are the training data.
    """
    train = _dataset(config, config.train, config.features, seed)
    val = AUTO_VAL_SHARE if config.val == "auto" else config.val
    if val is None:
        return train, None
    if not isinstance(val, str):
        return train.split(val)
    check_apart(config.train, val, "file")
    return train, _dataset(config, val, train.features, seed)


def build_table_evaluation(
    spec: DataSpec, path: str, settings: Sequence[str]
) -> InteractionDataset:
    """Return the rows at `path` with the features that a model was trained on.

    Args:
        spec: of the model.
        path: of the data.
        settings: what is read otherwise than in training: see `TableOptions.changed`; and
            `time_column=NAME`: rows are in the order of time.

    Raises:
        ConfigError: a setting is unknown, or follows from the model.
    """
    prefix = "time_column="
    times = [setting.removeprefix(prefix) for setting in settings if setting.startswith(prefix)]
    options = spec.reading.changed([each for each in settings if not each.startswith(prefix)])
    return InteractionDataset(
        path, spec.features, layout=options.layout, column_names=options.column_names,
        delimiter=options.delimiter, time_column=times[-1] if times else None,
    )  # fmt: skip


def _dataset(
    config: TableDataConfig, path: str, features: FeatureSpec | str | None, seed: int
) -> InteractionDataset:
    is_inferred = features is None
    return InteractionDataset(
        path,
        features,
        labels=config.labels if is_inferred or config.features else None,
        crosses=config.crosses if is_inferred or config.features else (),
        ignore=config.ignore if is_inferred or config.features else (),
        time_column=config.time_column,
        layout=config.layout,
        column_names=config.column_names,
        delimiter=config.delimiter,
        seed=seed,
        cache=config.cache,
    )
