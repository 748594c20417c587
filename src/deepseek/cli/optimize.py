"""`deepseek optimize`: a model file and data -> the best way to run it on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer

from deepseek.cli.model_options import AsJson, ModelFile, Settings


def optimize(
    model: ModelFile,
    data: Annotated[
        str, typer.Option(help="Labelled data that were not trained on, or pictures without.")
    ],
    settings: Settings = None,
    target: Annotated[
        str, typer.Option(help="latency, throughput, size or memory: what is to be best.")
    ] = "latency",
    tolerance: Annotated[str, typer.Option(help="Largest drop of the metric.")] = "0.5%",
    budget: Annotated[str, typer.Option(help="Time of the search.")] = "5m",
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("optimized"),
    also: Annotated[
        list[Path] | None, typer.Option(help="The model made smaller; may be repeated.")
    ] = None,
    metric: Annotated[str, typer.Option(help="Of the model's task.")] = "auto",
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Samples of a batch of throughput, 32; may be repeated."),
    ] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="Try this one, not all; may be repeated.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Try this one, not all; may be repeated.")
    ] = None,
    sparsity: Annotated[
        list[str] | None,
        typer.Option(
            help="Try 2:4, or a share of the FLOPs such as 90%; may be repeated; or none."
        ),
    ] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="To measure on.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure ways to run a model on this machine, and write the best."""
    from deepseek.cli.build_run import build_evaluation_data
    from deepseek.deploy.optimization.optimize import PRECISIONS, SPARSITIES
    from deepseek.deploy.optimization.optimize import optimize as search
    from deepseek.deploy.scoring import find_items, holds_loose_pictures, takes_texts
    from deepseek.models import ModelEngine

    engine = ModelEngine.load(model)
    if not takes_texts(engine) and holds_loose_pictures(Path(data)):  # there are no labels
        samples = [Path(each) for each in find_items(engine, [Path(data)])]
    else:
        samples = build_evaluation_data(engine, data, settings or [])
    found = search(
        engine, samples, target, tolerance, budget, out=out, also=also or (), metric=metric,
        batch_size=batch_size or 32, runtimes=runtime or None, precisions=precision or PRECISIONS,
        sparsities=SPARSITIES if not sparsity else () if sparsity == ["none"] else sparsity,
        max_samples=max_samples, shows_progress=not as_json,
    )  # fmt: skip
    if as_json:
        print(json.dumps(json.loads((found.report.parent / "report.json").read_text())))
