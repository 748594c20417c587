"""`deepseek prune`: a model file -> a smaller one, trained on if there are data."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepseek.cli.json_figures import json_figures, only_json
from deepseek.cli.model_options import AsJson, ModelFile, Settings
from deepseek.cli.model_output import check_model_output

if TYPE_CHECKING:
    from deepseek.cli.build_run import AnyDataset
    from deepseek.deploy import Pruning
    from deepseek.models import ModelEngine

VAL_SHARE = 0.1


def prune(
    model: ModelFile,
    target: Annotated[Path, typer.Argument(metavar="OUT.bin", help="Where the pruned one goes.")],
    settings: Settings = None,
    flops: Annotated[str | None, typer.Option(help="FLOPs that are left, such as 50%.")] = None,
    parameters: Annotated[str | None, typer.Option(help="Parameters left, such as 50%.")] = None,
    pattern: Annotated[str | None, typer.Option(help="2:4, two zeros in four weights.")] = None,
    depth: Annotated[
        bool, typer.Option("--depth", help="Leave whole blocks out, not channels and heads.")
    ] = False,
    criterion: Annotated[
        str, typer.Option(help="What goes first: magnitude, taylor, bn_scale or random.")
    ] = "magnitude",
    data: Annotated[str | None, typer.Option(help="Labelled data to train on with.")] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Data to measure with, before and after; by default --data, or a tenth of it that"
            " is not trained with."
        ),
    ] = None,
    transform: Annotated[
        str | None, typer.Option(help="Of pictures in training, such as resize_32+hflip.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="To train on for; 0: not at all.")] = 0,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate, of AdamW.")] = 3e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of an optimizer step.")] = 64,
    distill: Annotated[
        bool, typer.Option("--distill", help="Learn from the original as well as from labels.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Cut a model down, and train it on."""
    from deepseek.cli.build_run import build_evaluation_data
    from deepseek.deploy import prune as prune_model
    from deepseek.deploy.shares import read_share
    from deepseek.models import ModelEngine

    _check(model, target, data, transform, epochs, distill)
    engine = ModelEngine.load(model)
    dataset, held_back = (
        None if path is None else build_evaluation_data(engine, path, settings or [])
        for path in (data, val)
    )
    train = dataset
    if held_back is None and dataset is not None:
        train, held_back = _hold_back(dataset) if epochs else (dataset, dataset)
    before = _measure(engine, held_back, batch_size)
    pruned = prune_model(
        engine,
        flops=read_share("--flops", flops),
        parameters=read_share("--parameters", parameters),
        pattern=pattern,
        what="depth" if depth else "width",
        criterion=criterion,
        data=train,
    )
    if not as_json:
        print(pruned.describe())
    if epochs:
        recipe = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
        teacher = engine if distill else None
        with only_json(as_json):
            _train_on(pruned, teacher, train, held_back, transform, recipe, target)
    else:
        pruned.model.save(target)
    after = _measure(ModelEngine.load(target), held_back, batch_size)
    if as_json:
        costs = {"before": asdict(pruned.before), "after": asdict(pruned.after)}
        measured = {"metrics_before": json_figures(before), "metrics": json_figures(after)}
        print(json.dumps({"model": str(target), **costs, **measured}))
        return
    for name, value in after.items():
        print(f"{name}  {before[name]:.6g} -> {value:.6g}")
    print(f"  {target}")


def _check(
    model: Path,
    target: Path,
    data: str | None,
    transform: str | None,
    epochs: int,
    distill: bool,
) -> None:
    """Refuse, before anything is computed, what could not be done or would be ignored."""
    from deepseek.errors import ConfigError

    check_model_output(model, target)
    if epochs and data is None:
        raise ConfigError(f"--epochs={epochs} without data to train with", fix="give --data PATH")
    given = {"--distill": distill, "--transform": transform}
    for option, value in given.items():
        if value and not epochs:
            raise ConfigError(f"{option} would be ignored: --epochs is 0", fix="give --epochs 10")


def _hold_back(dataset: "AnyDataset") -> tuple:
    """Return what is trained with, and what is measured with."""
    from deepseek.datasets import JointDataset, MultiTaskDataset
    from deepseek.errors import ConfigError
    from deepseek.medical import NoduleDataset

    if isinstance(dataset, JointDataset | MultiTaskDataset | NoduleDataset):
        raise ConfigError(
            f"a {type(dataset).__name__} is not divided, and something has to be held back",
            fix="give --val PATH",
        )
    return dataset.split(VAL_SHARE)


def _measure(engine: "ModelEngine", data, batch_size: int) -> dict[str, float]:
    """Return the metrics on what is held back; none where there are no data."""
    from deepseek.trainer import evaluate_model

    return {} if data is None else evaluate_model(engine, data, batch_size)


def _train_on(
    pruned: "Pruning",
    teacher: "ModelEngine | None",
    train,
    held_back,
    transform: str | None,
    recipe: dict,
    target: Path,
) -> None:
    """Train a pruned model, and write the best of it on what is held back."""
    from deepseek.deploy import KeepZeros
    from deepseek.trainer import Distillation, Trainer

    if transform is not None:
        train = train.with_transform(transform)
    trainer = Trainer(
        pruned.model, train, held_back,
        task="auto" if teacher is None else Distillation(teacher),
        callbacks=[KeepZeros()] if pruned.zeroed else [],
        name="prune", **recipe,
    )  # fmt: skip
    trainer.fit()
    shutil.copyfile(trainer.folder.model, target)
