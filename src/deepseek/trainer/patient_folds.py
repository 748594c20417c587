"""Cross-validation of scans: each patient is tested once, by a model that has seen none of theirs.

The figures are the mean over folds and their standard deviation (divided by folds - 1). Without a
share that is held back to choose the model, the last weights of each fold count.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deepseek.trainer.cross_validation import (
    figures_of,
    fit_and_test,
    folds_to_run,
    how_chosen,
    is_writer,
    keep_protocol,
    run_folds,
    table_of,
    write_folds,
)
from deepseek.trainer.trainer import Trainer


class PatientData(Protocol):
    """A data set that knows whose its samples are."""

    def split_fold(self, fold: int, num_folds: int) -> tuple[Any, Any]:
        """Return training and test data; no patient is in both."""
        ...


def cross_validate_patients(
    make_trainer: Callable[[Any, Any, Path], Trainer],
    data: PatientData,
    num_folds: int,
    folder: str | Path,
    *,
    only: Sequence[int] | None = None,
    val_share: float = 0.0,
    seed: int = 0,
) -> dict[int, dict[str, float]]:
    """Train and test a model for each fold; one that is finished in `folder` is not run again.

    Args:
        make_trainer: (training data, held-back data or `None`, run folder) -> the trainer of a
            fold, with a model of its own.
        data: all of them.
        num_folds: parts of the patients.
        folder: for the runs and `folds.json`.
        only: numbers of the folds to run; all by default.
        val_share: of the patients of the training part, held back to choose the model; 0: the last
            weights count. More than 0 needs data with a `split`.
        seed: of what is held back.

    Returns:
        The metrics of each fold that was run, by its number.

    Raises:
        ConfigError: there is no such fold, fewer patients than folds, or the folder is of others,
            or of other data.
    """
    folder, wanted = Path(folder), folds_to_run(num_folds, only)
    num_tested = [len(data.split_fold(fold, num_folds)[1]) for fold in range(num_folds)]
    protocol = {
        "folds": num_folds, "val_share": val_share, "seed": seed, "num_tested": num_tested,
    }  # fmt: skip
    keep_protocol(folder, **protocol)

    def run(fold: int, place: Path) -> dict[str, float]:
        (train, test), held_back = data.split_fold(fold, num_folds), None
        if val_share:
            train, held_back = train.split(val_share, seed)
        trainer = make_trainer(train, held_back, place)
        return fit_and_test(trainer, test, np.arange(len(test)), place)

    metrics = run_folds(wanted, folder, run)
    if is_writer():
        write_folds(folder, {**protocol, "run": sorted(metrics)} | figures_of(metrics))
    return metrics


def describe_patient_folds(
    metrics: Mapping[int, dict[str, float]], num_folds: int, val_share: float
) -> str:
    """Return protocol and figures as text."""
    protocol = f"protocol  {num_folds} folds of patients; {how_chosen(val_share)}"
    return "\n".join([protocol, *table_of(metrics)])
