"""Cross-validation: as many models as folds, each tested on the fold that it has not seen.

Protocol. Folds hold as many samples of each class. Of what is not in the test fold, a share is held
back; it says which step's model is taken, and the test fold is looked at once, with that model.
Without such a share the last weights are taken. The figures are the mean over folds and their
standard deviation (divided by folds - 1). Texts that are almost the same and lie in different folds
are counted, and kept in one fold on request. On several ranks the first one writes.

Shapes: N samples, C classes.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors.torch import load_file, save_file

from deepseek.datasets import ImageDataset, TextDataset
from deepseek.datasets.folds import stratified_folds
from deepseek.datasets.near_duplicates import Pair, find_near_duplicates, group_pairs
from deepseek.errors import ConfigError
from deepseek.parallel.world import processes
from deepseek.trainer.averaging import weights_of
from deepseek.trainer.trainer import Trainer
from deepseek.whole_file import replacing

Foldable = TextDataset | ImageDataset
MakeTrainer = Callable[[Foldable, Foldable | None, Path], Trainer]
"""(training data, held-back data, run folder) -> the trainer of a fold."""
METRICS_FILE, SAMPLES_FILE = "fold.json", "fold.safetensors"
"""Of a fold; the first says that it is finished."""
FOLDS_FILE = "folds.json"
_SHOWN = 10


@dataclass(frozen=True)
class Folds:
    """Which sample is tested in which fold.

    Attributes:
        fold_of: of each sample, int64 (N,).
        num_folds: how many there are.
        pairs: texts that are almost the same.
        keeps_together: whether near-duplicates share a fold.
    """

    fold_of: np.ndarray
    num_folds: int
    pairs: tuple[Pair, ...]
    keeps_together: bool

    @property
    def partition(self) -> str:
        """A hash of `fold_of`."""
        return xxhash.xxh3_64_hexdigest(self.fold_of.astype(np.int64).tobytes())

    @property
    def leaks(self) -> list[Pair]:
        """The pairs of which one is trained on while the other is tested."""
        return [p for p in self.pairs if self.fold_of[p.first] != self.fold_of[p.second]]


@dataclass(frozen=True)
class CrossValidation:
    """What came of it.

    Attributes:
        metrics: of each fold that was run, by its number.
        folds: which sample was in which.
        val_share: of the training part, held back to choose the model.
        folder: with a run folder for each fold, and `predictions.safetensors`.
    """

    metrics: dict[int, dict[str, float]]
    folds: Folds
    val_share: float
    folder: Path

    def mean(self, name: str) -> float:
        """Return the mean of a metric over the folds."""
        return spread_of(self.metrics, name)[0]

    def std(self, name: str) -> float:
        """Return the standard deviation of a metric over the folds; 0 of one."""
        return spread_of(self.metrics, name)[1]

    def to_json(self) -> dict:
        """Return a JSON-able dict of protocol and figures."""
        return {
            "folds": self.folds.num_folds,
            "partition": self.folds.partition,
            "run": sorted(self.metrics),
            "val_share": self.val_share,
            "near_duplicates": len(self.folds.pairs),
            "near_duplicates_across_folds": len(self.folds.leaks),
            "keeps_together": self.folds.keeps_together,
            **figures_of(self.metrics),
        }


def spread_of(metrics: Mapping[int, dict[str, float]], name: str) -> tuple[float, float]:
    """Return mean and standard deviation of a metric over folds; the latter 0 of one.

    Both are NaN where a fold has no finite figure.
    """
    values = [each[name] for each in metrics.values()]
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def figures_of(metrics: Mapping[int, dict[str, float]]) -> dict:
    """Return the metrics of each fold, their means and deviations, JSON-able; `None` for NaN."""
    names = list(next(iter(metrics.values())))
    spreads = {name: spread_of(metrics, name) for name in names}
    return {
        "metrics": {str(fold): _written(own) for fold, own in sorted(metrics.items())},
        "mean": _written({name: mean for name, (mean, _) in spreads.items()}),
        "std": _written({name: std for name, (_, std) in spreads.items()}),
    }


def _written(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def table_of(metrics: Mapping[int, dict[str, float]]) -> list[str]:
    """Return lines: each metric of each fold, its mean and deviation."""
    names = list(next(iter(metrics.values())))
    width = max(map(len, names))
    lines = [f"{'':<{width}}  " + "  ".join(f"fold {fold:<3}" for fold in metrics)]
    for name in names:
        values = "  ".join(f"{own[name]:<8.4f}" for own in metrics.values())
        mean, std = spread_of(metrics, name)
        lines.append(f"{name:<{width}}  {values}  mean {mean:.4f} std {std:.4f}")
    return lines


def choose_folds(
    data: Foldable, num_folds: int, seed: int = 0, *, keeps_together: bool = False
) -> Folds:
    """Return the folds of a data set.

    Args:
        data: texts or pictures with a class each.
        num_folds: at least 2.
        seed: of the order within classes.
        keeps_together: put texts that are almost the same into one fold.

    Raises:
        ConfigError: the data have no class for each sample, or are too few.
    """
    if "classification" not in data.spec.task or data.spec.task == "token_classification":
        raise ConfigError(
            f"folds={num_folds} of data of the task {data.spec.task}: they are made by classes",
            fix="cross-validate a model that finds a class for each sample",
        )
    pairs: list[Pair] = []
    if isinstance(data, TextDataset):
        pairs = find_near_duplicates([data.text(number) for number in range(len(data))])
    groups = group_pairs(pairs, len(data)) if keeps_together else None
    fold_of = stratified_folds(data.targets, num_folds, seed, groups)
    return Folds(fold_of, num_folds, tuple(pairs), keeps_together)


def folds_to_run(num_folds: int, only: Sequence[int] | None) -> Sequence[int]:
    """Return the numbers of the folds to run: those that are named, or all.

    Raises:
        ConfigError: there is no such fold.
    """
    wanted = range(num_folds) if only is None else only
    if wrong := [fold for fold in wanted if not 0 <= fold < num_folds]:
        raise ConfigError(f"fold {wrong[0]} of {num_folds}", fix=f"give 0 to {num_folds - 1}")
    return wanted


def keep_protocol(folder: Path, **protocol: Any) -> None:
    """Note by which folds a folder's results are, before the first is there.

    Raises:
        ConfigError: it holds results by others, which would be mixed with these.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FOLDS_FILE
    known = json.loads(file.read_text()) if file.is_file() else {}
    for name, value in protocol.items():
        if name in known and known[name] != value:
            raise ConfigError(
                f"{folder} holds results with {name}={known[name]}, not {value}",
                fix="choose another run_dir, or the settings and data of before",
            )
    if not known and is_writer():
        with replacing(file) as draft:
            draft.write_text(json.dumps(protocol) + "\n")


def is_writer() -> bool:
    """Return whether this process writes what is of all folds: on several ranks the first does."""
    return processes()[0] == 0


def place_of(folder: Path, fold: int) -> Path:
    """Return the run folder of a fold."""
    return folder / f"fold_{fold}"


def run_folds(
    wanted: Sequence[int], folder: Path, run: Callable[[int, Path], dict[str, float]]
) -> dict[int, dict[str, float]]:
    """Return the metrics of each fold, after those that are not finished were run.

    Args:
        wanted: their numbers.
        folder: of all.
        run: trains and tests one in its place, as `fit_and_test` does.
    """
    metrics = {}
    for fold in wanted:
        known = place_of(folder, fold) / METRICS_FILE
        is_known = known.is_file()
        metrics[fold] = json.loads(known.read_text()) if is_known else run(fold, known.parent)
    return metrics


def how_chosen(val_share: float) -> str:
    """Return in words which weights of a fold are tested."""
    held = f"{val_share:.0%} of the rest held back to choose the model"
    return held if val_share else "the last weights of each"


def cross_validate(
    make_trainer: MakeTrainer,
    data: Foldable,
    folds: Folds,
    folder: str | Path,
    *,
    only: Sequence[int] | None = None,
    val_share: float = 0.1,
    seed: int = 0,
) -> CrossValidation:
    """Train and test a model for each fold; one that is finished in `folder` is not run again.

    Args:
        make_trainer: makes the trainer of a fold, with a model of its own.
        data: all of them.
        folds: of `choose_folds`.
        folder: for the runs and `folds.json`.
        only: numbers of the folds to run; all by default.
        val_share: of the training part of a fold, held back; 0: the last weights count.
        seed: of what is held back.

    Raises:
        ConfigError: there is no such fold, or the folder is of other folds: of another number, or
            with other samples in them.
    """
    folder, wanted = Path(folder), folds_to_run(folds.num_folds, only)
    keep_protocol(
        folder, folds=folds.num_folds, val_share=val_share, keeps_together=folds.keeps_together,
        seed=seed, partition=folds.partition,
    )  # fmt: skip

    def run(fold: int, place: Path) -> dict[str, float]:
        return _run(make_trainer, data, folds.fold_of == fold, place, val_share, seed)

    result = CrossValidation(run_folds(wanted, folder, run), folds, val_share, folder)
    if is_writer():
        samples = [load_file(place_of(folder, fold) / SAMPLES_FILE) for fold in wanted]
        joined = {name: torch.cat([each[name] for each in samples]) for name in samples[0]}
        with replacing(folder / "predictions.safetensors") as draft:
            save_file(joined, draft)
        write_folds(folder, result.to_json() | {"seed": seed})
    return result


def write_folds(folder: Path, found: dict) -> None:
    """Write `folds.json`: protocol and figures."""
    with replacing(folder / FOLDS_FILE) as draft:
        draft.write_text(json.dumps(found, indent=1) + "\n")


def _run(
    make_trainer: MakeTrainer,
    data: Foldable,
    is_test: np.ndarray,
    place: Path,
    val_share: float,
    seed: int,
) -> dict[str, float]:
    """Train and test one fold, and return its metrics."""
    train, held_back = data.take(~is_test), None
    if val_share:
        train, held_back = train.split(val_share, seed)
    trainer = make_trainer(train, held_back, place)
    test = data.take(is_test).evaluation_view()
    return fit_and_test(trainer, test, np.flatnonzero(is_test), place)


def fit_and_test(
    trainer: Trainer, test_data: Any, places: np.ndarray, place: Path
) -> dict[str, float]:
    """Train and test one fold, write its `fold.json` last, and return its metrics.

    On several ranks the first one writes while the others wait.

    Args:
        trainer: of the fold.
        test_data: that it has not seen.
        places: numbers of these samples among all.
        place: run folder of the fold.
    """
    trainer.fit()
    parallel = trainer.trained  # asked again, it would take the buffers of the last step
    with weights_of(parallel, trainer.folder.model):
        tested = trainer._evaluation(test_data, keeps_samples=True, parallel=parallel)
    found = {**tested.samples, "index": torch.from_numpy(places)[tested.samples["index"]]}
    trainer.world.lead(lambda: _write_fold(place, tested.metrics, found))
    return tested.metrics


def _write_fold(place: Path, metrics: dict[str, float], samples: dict[str, torch.Tensor]) -> None:
    with replacing(place / SAMPLES_FILE) as draft:
        save_file({name: value.contiguous() for name, value in samples.items()}, draft)
    with replacing(place / METRICS_FILE) as draft:
        draft.write_text(json.dumps(metrics) + "\n")


def describe_folds(result: CrossValidation, texts: TextDataset | None = None) -> str:
    """Return protocol and figures as text.

    Args:
        result: what came of it.
        texts: the data, to show pairs that leak.
    """
    folds = result.folds
    lines = [
        f"protocol  {folds.num_folds} folds, stratified; {how_chosen(result.val_share)}",
        f"leakage   {len(folds.pairs)} pairs of texts that are almost the same,"
        f" {len(folds.leaks)} across folds",
    ]
    if texts is not None:
        for pair in folds.leaks[:_SHOWN]:
            lines.append(f"  {pair.likeness:.2f}  {texts.text(pair.first)[:80]}")
            lines.append(f"        {texts.text(pair.second)[:80]}")
    return "\n".join([*lines, *table_of(result.metrics)])
