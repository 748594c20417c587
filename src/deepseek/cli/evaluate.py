"""`deepseek evaluate`: a model and labelled data -> metrics."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepseek.cli.json_figures import json_figures
from deepseek.cli.model_options import AnyModel, AsJson, Device, Precision, Settings, Threads, Trust
from deepseek.cli.progress import progress
from deepseek.whole_file import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from deepseek.cli.build_run import AnyDataset
    from deepseek.datasets import DataSpec
    from deepseek.trainer.evaluation_part import EvaluationPart


def evaluate(
    model: AnyModel,
    data: Annotated[str, typer.Option(help="Labelled data: pictures or text, as in training.")],
    settings: Settings = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write model, data and metrics to this .json file; interrupted, run again."
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="Write a row per sample to this .parquet, .jsonl or .csv file."),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A metric beside those of the task, may be repeated: hd95, of volumes, in mm;"
            " calibration, of voxels.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 32,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on labelled data."""
    from deepseek.cli.build_run import build_evaluation_data
    from deepseek.cli.model_output import check_output_file
    from deepseek.cli.opened_model import open_model
    from deepseek.deploy.scoring import check_output
    from deepseek.trainer.evaluation import count_batches, evaluate_samples

    if output is not None:
        check_output_file(output)
    if samples is not None:
        check_output(samples)
    opened = open_model(model, device, precision, threads, trust)
    engine = opened.engine
    if samples is not None and engine.spec is not None:
        _check_classes(engine.spec)
    if opened.is_program:
        device, precision = "cpu", "fp32"  # it has its own
    dataset = build_evaluation_data(engine, data, settings or [])
    about = {
        "data": data, "settings": settings or [], "batch_size": batch_size, "device": device,
        "precision": precision, "metrics": metrics or [], "keeps_samples": samples is not None,
    }  # fmt: skip
    done = _find_done(samples or output, opened.path, dataset, about)
    with progress("batches", lambda: count_batches(dataset, batch_size)) as show:
        found = evaluate_samples(
            engine, dataset, batch_size, device=device, precision=precision,
            keeps_samples=samples is not None, metrics=metrics or (), on_batch=show, done=done,
        )  # fmt: skip
    # of several tasks the data have labels of one, and scores beside what is found of none
    may_lack = engine.spec is not None and (engine.spec.tasks or engine.spec.task == "detection")
    measured = {n: v for n, v in found.metrics.items() if not may_lack or v == v}
    report = {"model": str(model), "data": data, "metrics": json_figures(measured)}
    if output is not None:
        with replacing(output) as draft:
            draft.write_text(json.dumps(report, indent=1) + "\n")
    if samples is not None:
        _write_samples(samples, found.samples, engine.spec.class_names if engine.spec else ())
    if done is not None:
        done.remove()
    if as_json:
        print(json.dumps(report))
        return
    width = max(map(len, measured), default=0)
    for name, value in measured.items():
        print(f"{name:<{width}}  {value:.6g}")


def _check_classes(spec: "DataSpec") -> None:
    """Refuse what has no class for each sample.

    Raises:
        ConfigError: it has none.
    """
    from deepseek.errors import ConfigError

    if spec.task not in ("classification", "sequence_classification"):
        raise ConfigError(
            f"--samples writes the class of each sample, and the task of the model is {spec.task}",
            fix="leave --samples out",
        )


def _find_done(
    output: Path | None, model: Path, dataset: "AnyDataset", about: dict
) -> "EvaluationPart | None":
    """Return what is done, in a file beside the output; `None` where nothing is written.

    Raises:
        ConfigError: that file is of another evaluation.
    """
    from deepseek.deploy.artefact import sha256
    from deepseek.deploy.scoring import part_of
    from deepseek.trainer.evaluation_part import EvaluationPart, digest_of_files

    if output is None:
        return None
    part = part_of(output)
    about = {
        "model": sha256(model), "files": digest_of_files(Path(about["data"]), part),
        "num_samples": len(dataset), **about,
    }  # fmt: skip
    return EvaluationPart(part, about)


def _write_samples(path: Path, found: "dict[str, Tensor]", class_names: tuple[str, ...]) -> None:
    from deepseek.deploy.scoring import write_table

    probs, predicted = found["probs"].max(1)
    columns = zip(
        found["index"].tolist(), found["targets"].tolist(), predicted.tolist(), probs.tolist(),
        found["loss"].tolist(), strict=True,
    )  # fmt: skip
    rows = (
        {
            "index": index, "target": class_names[target], "label": class_names[label],
            "prob": prob, "loss": loss,
        }
        for index, target, label, prob, loss in columns
    )  # fmt: skip
    write_table(path, rows)
