"""`deepseek calibrate`: a classifier and labelled data -> one whose probabilities come true."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deepseek.cli.model_options import AsJson, Device, ModelFile, Settings


def calibrate(
    model: ModelFile,
    output: Annotated[Path, typer.Argument(metavar="OUT.bin", help="Model file to write.")],
    data: Annotated[str, typer.Option(help="Labelled data that were not trained on.")],
    settings: Settings = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Divide the logits of a classifier by the temperature that fits labelled data best."""
    from deepseek.cli.build_run import build_evaluation_data
    from deepseek.deploy.temperature import calibrate_model
    from deepseek.models import ModelEngine

    engine = ModelEngine.load(model)
    dataset = build_evaluation_data(engine, data, settings or [])
    calibrated, temperature = calibrate_model(engine, dataset, device=device)
    calibrated.save(output)
    print(json.dumps(asdict(temperature)) if as_json else f"{temperature.describe()}\n{output}")
