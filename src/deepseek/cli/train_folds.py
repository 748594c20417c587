"""`deepseek train --folds`: a configuration -> a run for each fold, and their mean."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deepseek.cli.build_run import build_data, trainer_of
from deepseek.cli.build_text import AUTO_VAL_SHARE
from deepseek.config import (
    DataConfig,
    NoduleDataConfig,
    RunConfig,
    TextDataConfig,
    VolumeDataConfig,
)
from deepseek.datasets import TextDataset
from deepseek.errors import ConfigError
from deepseek.trainer.cross_validation import (
    Foldable,
    choose_folds,
    cross_validate,
    describe_folds,
)
from deepseek.trainer.patient_folds import (
    PatientData,
    cross_validate_patients,
    describe_patient_folds,
)
from deepseek.trainer.run_folder import RunFolder
from deepseek.trainer.trainer import Trainer


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
        ConfigError: the data are of another kind than texts or pictures with a class each, or
            scans, or have validation data of their own.
    """
    if isinstance(config.data, NoduleDataConfig | VolumeDataConfig):
        _train_patients(config, config.data, num_folds, only, run_dir, together=together)
        return
    if not isinstance(config.data, TextDataConfig | DataConfig):
        raise ConfigError(
            f"--folds={num_folds} of data.format={config.data.format}",
            fix="cross-validate texts, pictures or scans",
        )
    share = _held_back(config.data.val, num_folds)
    alone = config.data.model_copy(update={"val": None})
    data: Foldable = build_data(alone, config.seed)[0]  # pyright: ignore[reportAssignmentType]
    folder = _folder_of(config, run_dir)

    folds = choose_folds(data, num_folds, config.seed, keeps_together=together)
    result = cross_validate(
        partial(_trainer_of_fold, config), data, folds, folder, only=only or None, val_share=share,
        seed=config.seed,
    )  # fmt: skip
    print(describe_folds(result, data if isinstance(data, TextDataset) else None))
    print(folder / "folds.json")


def _train_patients(
    config: RunConfig,
    data: NoduleDataConfig | VolumeDataConfig,
    num_folds: int,
    only: Sequence[int] | None,
    run_dir: Path | None,
    *,
    together: bool,
) -> None:
    """Cross-validate scans or cubes, whose folds divide patients."""
    if together:
        raise ConfigError(
            f"--together would be ignored with data.format={data.format}: it is of texts",
            fix="leave it out: what is of one patient is in one fold anyway",
        )
    if isinstance(data, NoduleDataConfig):
        share, alone = 0.0, data.model_copy(update={"fold": None})
    else:
        share, alone = _held_back(data.val, num_folds), data.model_copy(update={"val": None})
    whole: PatientData = build_data(alone, config.seed)[0]  # pyright: ignore[reportAssignmentType]
    folder = _folder_of(config, run_dir)
    metrics = cross_validate_patients(
        partial(_trainer_of_fold, config), whole, num_folds, folder, only=only or None,
        val_share=share, seed=config.seed,
    )  # fmt: skip
    print(describe_patient_folds(metrics, num_folds, share))
    print(folder / "folds.json")


def _trainer_of_fold(config: RunConfig, train: Any, held_back: Any, place: Path) -> Trainer:
    """Return the trainer of a fold, which goes on where an interrupted one has saved."""
    has_saved = any((place / "checkpoints").glob("step_*"))
    if not has_saved:
        shutil.rmtree(place, ignore_errors=True)  # it ended before it had anything to go on with
    return trainer_of(config, train, held_back, place, place if has_saved else None)


def _held_back(val: float | str | None, num_folds: int) -> float:
    """Return the share of the training part that chooses the model.

    Raises:
        ConfigError: validation data of their own are named.
    """
    if isinstance(val, str) and val != "auto":
        raise ConfigError(
            f"--folds={num_folds} and data.val={val}: what is tested comes from data.train",
            fix="set data.val to a share that chooses the model, such as 0.1, or null",
        )
    return AUTO_VAL_SHARE if isinstance(val, str) else val or 0.0


def _folder_of(config: RunConfig, run_dir: Path | None) -> Path:
    return run_dir or RunFolder.create(f"{config.name}-folds", output=Path(config.output)).path
