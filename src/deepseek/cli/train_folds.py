"""`deepseek train --folds`: a configuration -> a run for each fold, and their mean."""

from collections.abc import Sequence
from pathlib import Path

from deepseek.cli.build_run import build_data, trainer_of
from deepseek.cli.build_text import AUTO_VAL_SHARE
from deepseek.config import DataConfig, RunConfig, TextDataConfig
from deepseek.datasets import TextDataset
from deepseek.errors import ConfigError
from deepseek.trainer.cross_validation import (
    Foldable,
    choose_folds,
    cross_validate,
    describe_folds,
)
from deepseek.trainer.run_folder import RunFolder


def train_folds(
    config: RunConfig,
    num_folds: int,
    only: Sequence[int] | None,
    run_dir: Path | None,
    *,
    together: bool,
) -> None:
    """Cross-validate what a configuration describes, and print protocol and figures.

    Raises:
        ConfigError: the data are of another kind than texts or pictures with a class each, or have
            validation data of their own.
    """
    if not isinstance(config.data, TextDataConfig | DataConfig):
        raise ConfigError(
            f"--folds={num_folds} of data.format={config.data.format}",
            fix="cross-validate texts or pictures",
        )
    val = config.data.val
    if isinstance(val, str) and val != "auto":
        raise ConfigError(
            f"--folds={num_folds} and data.val={val}: what is tested comes from data.train",
            fix="set data.val to a share that chooses the model, such as 0.1, or null",
        )
    share = {"auto": AUTO_VAL_SHARE, None: 0.0}.get(val, val)  # pyright: ignore[reportArgumentType]
    alone = config.data.model_copy(update={"val": None})
    data: Foldable = build_data(alone, config.seed)[0]  # pyright: ignore[reportAssignmentType]
    folder = run_dir or RunFolder.create(f"{config.name}-folds", output=Path(config.output)).path

    def make(train: Foldable, held_back: Foldable | None, place: Path):
        return trainer_of(config, train, held_back, place)

    folds = choose_folds(data, num_folds, config.seed, keeps_together=together)
    result = cross_validate(
        make, data, folds, folder, only=only or None, val_share=float(share or 0.0),
        seed=config.seed,
    )  # fmt: skip
    print(describe_folds(result, data if isinstance(data, TextDataset) else None))
    print(folder / "folds.json")
