"""`deepseek quantize`: a model file and data -> a model file in fewer bits."""

import json
from pathlib import Path
from typing import Annotated

import typer

from deepseek.cli.model_options import AsJson, ModelFile, Settings
from deepseek.cli.model_output import check_model_output


def quantize(
    model: ModelFile,
    output: Annotated[Path, typer.Argument(metavar="OUT.bin", help="Where the new one goes.")],
    settings: Settings = None,
    scheme: Annotated[
        str,
        typer.Option(help="fp16, bf16, int8_weight_only, int8_dynamic or int8_static."),
    ] = "int8_static",
    data: Annotated[
        str | None, typer.Option(help="Labelled data, held out: pictures or text, as in training.")
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Data for the ranges of inputs, such as training data; a part of --data"),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(help="How far the metric may fall: 0.5% or 0.005. Layers stay in float."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="accuracy, macro_f1, cosine, ...")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="A layer that stays in float; may be repeated.")
    ] = None,
    ranges: Annotated[str, typer.Option(help="Of inputs: minmax, percentile or mse.")] = "mse",
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Ranges about zero.")] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Tables of embeddings, too.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="To calibrate with, at most.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Write a model in 8 or 16 bits, within a tolerance."""
    check_model_output(model, output)
    from deepseek.cli.build_run import build_evaluation_data
    from deepseek.deploy import Calibration
    from deepseek.deploy import quantize as quantize_model
    from deepseek.models import ModelEngine

    engine = ModelEngine.load(model)
    opened = [
        None if path is None else build_evaluation_data(engine, path, settings or [])
        for path in (data, calibrate)
    ]
    done = quantize_model(
        engine, scheme, opened[0], tolerance=tolerance, metric=metric, keep=keep or (),
        embeddings=True if embeddings else None,
        calibration=Calibration(
            opened[1], ranges, "symmetric" if symmetric else "affine", samples
        ),
        batch_size=batch_size, say=lambda text: typer.echo(f"  {text}", err=True),
    )  # fmt: skip
    done.model.save(output)
    if as_json:
        print(json.dumps({"model": str(output), **done.to_json()}))
        return
    print(done.describe())
    print(f"  {output}")
