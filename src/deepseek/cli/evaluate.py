"""`deepseek evaluate`: a model file and data -> metrics."""

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL.bin", help="Model file of a run.")],
    data: Annotated[str, typer.Option(help="Labelled data: pictures or text, as in training.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="How text is read: label_column=sentiment."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model on labelled data."""
    from deepseek.cli.build_run import build_evaluation_data
    from deepseek.models import ModelEngine
    from deepseek.trainer import evaluate_model

    engine = ModelEngine.load(model)
    dataset = build_evaluation_data(engine, data, settings or [])
    metrics = evaluate_model(engine, dataset, batch_size)
    if as_json:
        print(json.dumps({"model": str(model), "data": data, "metrics": metrics}))
        return
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:.6g}")
