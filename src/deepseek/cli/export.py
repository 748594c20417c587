"""`deepseek export`: a model file -> a file that other programs run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from deepseek.cli.model_options import AsJson, ModelFile, Settings


def export(
    model: ModelFile,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="File to write: .pt2, .aoti.pt2, .onnx, .xml (OpenVINO) or .pte."
        ),
    ],
    settings: Settings = None,
    format: Annotated[
        str | None,
        typer.Option(help="pt2, aoti, onnx, openvino or executorch; else what OUT ends with."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16, int8, int8_bf16, as far as the format has it.")
    ] = "fp32",
    opset: Annotated[int | None, typer.Option(min=1, help="Of ONNX.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Labelled data to compare on, and to calibrate int8 on; else random."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of one batch, when the file is opened.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model for another runtime, and compare what it computes."""
    from deepseek.cli.build_run import build_evaluation_data
    from deepseek.deploy.formats import export as write
    from deepseek.deploy.formats import find_format
    from deepseek.errors import ConfigError
    from deepseek.models import ModelEngine

    find_format(out, format)  # before anything is read
    if settings and data is None:
        raise ConfigError(
            f"{' '.join(settings)} would be ignored: there are no --data", fix="give --data"
        )
    engine = ModelEngine.load(model)
    dataset = None if data is None else build_evaluation_data(engine, data, settings or [])
    written = write(
        engine, out, format=format, precision=precision, opset=opset, data=dataset, threads=threads
    )
    if not as_json:
        print(written.describe())
        return
    result = {
        "out": str(out), "format": written.format, "precision": precision,
        "files": list(written.artefact.hashes), "bytes": written.num_bytes,
        "difference": written.artefact.difference, "real_samples": written.is_real,
        "batch_size": written.batch_size, "seconds": written.seconds,
        "eager_seconds": written.eager_seconds,
    }  # fmt: skip
    print(json.dumps(result))
