"""`deepseek train --folds`: a configuration -> a run for each fold, and their mean."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deepseek.cli.build_run import build_data, trainer_of
from deepseek.cli.build_text import AUTO_VAL_SHARE
from deepseek.cli.run_folders import CONFIG, flat_settings
from deepseek.config import (
    DataConfig,
    NoduleDataConfig,
    RunConfig,
    TextDataConfig,
    VolumeDataConfig,
    load_config,
    resolve,
)
from deepseek.datasets import TextDataset
from deepseek.errors import ConfigError
from deepseek.parallel.world import processes
from deepseek.trainer.cross_validation import (
    FOLDS_FILE,
    METRICS_FILE,
    Foldable,
    choose_folds,
    cross_validate,
    describe_folds,
    is_writer,
    place_of,
)
from deepseek.trainer.opening import LAUNCHED
from deepseek.trainer.patient_folds import (
    PatientData,
    cross_validate_patients,
    describe_patient_folds,
)
from deepseek.trainer.run_folder import RunFolder
from deepseek.trainer.trainer import Trainer

FREE = (
    "output", "name", "data.num_workers", "trainer.num_workers", "trainer.worker_timeout_s",
    "trainer.device", "trainer.parallel", "trainer.loggers", "trainer.wandb_mode",
    "trainer.checkpoint_every", "trainer.keep_checkpoints", "trainer.keep_every",
    "trainer.log_every", "trainer.profile",
)  # fmt: skip
"""Settings that figures do not depend on: where a run is, and on what it runs."""
LENGTH = ("trainer.epochs", "trainer.max_steps", "trainer.time_budget")
"""Settings that a fold may be given more of, as any run that is resumed, until it is finished."""
BEGUN = {CONFIG, LAUNCHED}
"""What a run writes before anything tells its folder from others."""


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
            scans, or have validation data of their own; the folder holds folds of other settings,
            or something else; several processes have no folder in common.
    """
    if run_dir is not None:
        _check_places(config, num_folds, run_dir)
    elif (size := processes()[1]) > 1:
        raise ConfigError(
            f"--folds={num_folds} on {size} processes, each of which would make up its own folder",
            fix="add --run-dir=DIR",
        )
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
    if is_writer():
        print(describe_folds(result, data if isinstance(data, TextDataset) else None))
        print(folder / FOLDS_FILE)


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
    if is_writer():
        print(describe_patient_folds(metrics, num_folds, share))
        print(folder / FOLDS_FILE)


def _trainer_of_fold(config: RunConfig, train: Any, held_back: Any, place: Path) -> Trainer:
    """Return the trainer of a fold, which goes on where an interrupted one has saved."""
    run = RunFolder(place)
    if not run.has_saved and is_writer():
        run.begin_anew()
    return trainer_of(config, train, held_back, place, place if run.has_saved else None)


def _check_places(config: RunConfig, num_folds: int, folder: Path) -> None:
    """Refuse a folder in which folds would be mixed with something else.

    Raises:
        ConfigError: a fold is there that was trained with other settings, or something of the name
            of a fold that is no run.
    """
    now = flat_settings(resolve(config).model_dump(mode="json"))
    for place in (place_of(folder, fold) for fold in range(num_folds)):
        names = {each.name for each in place.iterdir()} if place.is_dir() else set()
        if names - BEGUN and names.isdisjoint({"environment.json", METRICS_FILE}):
            raise ConfigError(
                f"{place} holds something that is no run", fix="choose another --run-dir"
            )
        if CONFIG in names and METRICS_FILE in names:
            _refuse_other_settings(now, place, FREE)
        elif CONFIG in names and RunFolder(place).has_saved:
            _refuse_other_settings(now, place, FREE + LENGTH)


def _refuse_other_settings(now: dict[str, Any], place: Path, free: tuple[str, ...]) -> None:
    was = flat_settings(resolve(load_config(place / CONFIG)).model_dump(mode="json"))
    for name in sorted(was.keys() | now.keys()):
        if not name.startswith(free) and was.get(name) != now.get(name):
            raise ConfigError(
                f"{place} was trained with {name}={was.get(name)}, not {now.get(name)}",
                fix="choose another --run-dir, or the settings of before",
            )


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
