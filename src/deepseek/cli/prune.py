"""`deepseek prune`: a model file -> a smaller one, trained on if there are data."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepseek.cli.model_options import AsJson, ModelFile, Settings

if TYPE_CHECKING:
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
        str | None, typer.Option(help="Data to measure with; a tenth of --data by default.")
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
    from deepseek.models import ModelEngine

    _check(target, data, val, transform, epochs, distill)
    engine = ModelEngine.load(model)
    dataset = None
    if data is not None:
        dataset = build_evaluation_data(engine, data, settings or [])
    pruned = prune_model(
        engine,
        flops=read_share("--flops", flops),
        parameters=read_share("--parameters", parameters),
        pattern=pattern,
        what="depth" if depth else "width",
        criterion=criterion,
        data=dataset,
    )
    if not as_json:
        print(pruned.describe())
    metrics: dict[str, float] = {}
    if epochs:
        held_back = None if val is None else build_evaluation_data(engine, val, settings or [])
        recipe = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
        teacher = engine if distill else None
        metrics = _train_on(pruned, teacher, dataset, held_back, transform, recipe, target)
    else:
        pruned.model.save(target)
    if as_json:
        costs = {"before": asdict(pruned.before), "after": asdict(pruned.after)}
        print(json.dumps({"model": str(target), **costs, "metrics": metrics}))
        return
    for name, value in metrics.items():
        print(f"{name}  {value:.6g}")
    print(f"  {target}")


def read_share(option: str, text: str | None) -> float | None:
    """Return `50%` or `0.5` as 0.5.

    Raises:
        ConfigError: it is no number.
    """
    from deepseek.deploy.shares import parse_share
    from deepseek.errors import ConfigError

    if text is None:
        return None
    try:
        return parse_share(text)
    except ValueError:
        raise ConfigError(f"{option}={text} is no share", fix=f"give {option} 50%") from None


def _check(
    target: Path,
    data: str | None,
    val: str | None,
    transform: str | None,
    epochs: int,
    distill: bool,
) -> None:
    """Refuse, before anything is computed, what could not be done or would be ignored."""
    from deepseek.errors import ConfigError

    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent} is not a folder", fix=f"mkdir -p {target.parent}")
    if epochs and data is None:
        raise ConfigError(f"--epochs={epochs} without data to train with", fix="give --data PATH")
    given = {"--distill": distill, "--val": val, "--transform": transform}
    for option, value in given.items():
        if value and not epochs:
            raise ConfigError(f"{option} would be ignored: --epochs is 0", fix="give --epochs 10")


def _train_on(
    pruned: "Pruning",
    teacher: "ModelEngine | None",
    dataset,
    held_back,
    transform: str | None,
    recipe: dict,
    target: Path,
) -> dict[str, float]:
    """Train a pruned model, write the best of it, and return its metrics on what is held back."""
    from deepseek.deploy import KeepZeros
    from deepseek.models import ModelEngine
    from deepseek.trainer import Distillation, Trainer, evaluate_model

    train = dataset
    if held_back is None:
        train, held_back = dataset.split(VAL_SHARE)
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
    return evaluate_model(ModelEngine.load(target), held_back, recipe["batch_size"])
