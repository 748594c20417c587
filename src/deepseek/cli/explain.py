"""`deepseek explain`: a model and labelled data -> a page of its mistakes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from deepseek.cli.model_options import AsJson, Device, ModelFile, Settings


def explain(
    model: ModelFile,
    data: Annotated[str, typer.Option(help="Labelled data that were not trained on.")],
    settings: Settings = None,
    output: Annotated[Path, typer.Option(help="The .html file to write.")] = Path("mistakes.html"),
    shown: Annotated[int, typer.Option(min=0, help="Mistakes on the page.")] = 20,
    steps: Annotated[
        int, typer.Option(min=0, help="Of integrated gradients; 0: words are not coloured.")
    ] = 32,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Show where a classifier is wrong, how sure it is, and which words made it so."""
    from deepseek.cli.build_run import build_evaluation_data
    from deepseek.deploy.error_analysis import analyse_errors
    from deepseek.models import ModelEngine

    engine = ModelEngine.load(model)
    dataset = build_evaluation_data(engine, data, settings or [])
    metrics = analyse_errors(
        engine, dataset, output, title=f"{model} on {data}", num_shown=shown, steps=steps,
        device=device,
    )  # fmt: skip
    print(json.dumps({"page": str(output), "metrics": metrics}) if as_json else output)
