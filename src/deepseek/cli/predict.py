"""`deepseek predict`: a model and pictures, texts, tables or volumes -> what it says of them."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepseek.cli.model_options import (
    AnyModel,
    AsJson,
    Device,
    Flips,
    Precision,
    Region,
    Threads,
    Trust,
)
from deepseek.cli.progress import progress
from deepseek.cli.table_settings import check_no_settings, is_table_setting

if TYPE_CHECKING:
    from deepseek.deploy.scoring import Scoring
    from deepseek.models import ModelEngine

MAX_SHOWN = 60
NO_RESULT = 3
"""Exit code where samples could not be read."""


def predict(
    model: AnyModel,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH...",
            help="Pictures, folders, or tables of paths; for texts, files with a line or row each;"
            " for tables, tables, and layout=criteo and the like where read otherwise than in"
            " training; for volumes, files, folders, DICOM series.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text, for a model of texts; may be repeated.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of tables with the text.")] = "text",
    path_column: Annotated[
        str, typer.Option(help="Column of tables with the paths of pictures.")
    ] = "path",
    top_k: Annotated[int, typer.Option(min=1, help="Classes per sample, best first.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write .parquet, .jsonl or .csv as it goes; run again, it goes on. Of volumes: a"
            " folder for masks."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End at a sample that cannot be read.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples at a time: 32; rows: 4096; windows: 4.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(min=0, max=0.95, help="Of windows of volumes: 0.25.")
    ] = None,
    flips: Flips = None,
    region: Region = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile a model of volumes.")
    ] = False,
    min_score: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of findings of a detector: what its validation settled."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of NoduleScorer.save: malignancy and more of findings, unless the detector tells"
            " it itself.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Of volumes: a page of pictures and scores."),
    ] = None,
    max_voxels: Annotated[
        int | None, typer.Option(min=1, help="Of a volume; a larger one is refused: 536,870,912.")
    ] = None,
    abnormal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="A class that DICOM segmentations call abnormal, may be repeated; by default by"
            " its name: nodule, lesion, tumour, ...",
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    threads: Threads = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Say what pictures show, of which class texts are, how rows score, or where a class is."""
    settings = [str(path) for path in paths or () if is_table_setting(str(path))]
    paths, texts = [path for path in paths or () if str(path) not in settings], text or []
    _check_given(paths, texts)
    from deepseek.cli.opened_model import open_model
    from deepseek.deploy.scoring import Scoring, check_output, find_items, takes_texts
    from deepseek.models.volume_detector import finds_centers
    from deepseek.models.volume_segmenter import takes_volumes

    opened = open_model(model, device, precision, threads, trust)
    engine, context = opened.engine, opened.context
    of_volumes = {
        "overlap": overlap, "flips": flips, "region": region, "compile": compiled or None,
        "min_score": min_score, "scores": scores, "report": report, "max_voxels": max_voxels,
        "abnormal": abnormal,
    }  # fmt: skip
    if takes_volumes(engine.spec) or finds_centers(engine.spec):
        check_no_settings(settings, f"the model {model}")
        from deepseek.cli.predict_volumes import VolumeOptions, predict_volumes

        _refuse_texts(texts)
        options = VolumeOptions(
            **of_volumes, batch_size=batch_size, model=model, precision=precision
        )
        predict_volumes(engine, paths, output, options, context, strict, as_json)
        return
    _refuse_window_options(of_volumes)
    if output is not None:
        check_output(output)
    if engine.spec is not None and engine.spec.features is not None:
        from deepseek.cli.predict_tables import predict_tables

        _refuse_texts(texts)
        options = engine.spec.reading.changed(settings)
        predict_tables(
            engine, paths, output, context, options, batch_size=batch_size, top_k=top_k,
            strict=strict, as_json=as_json,
        )  # fmt: skip
        return
    check_no_settings(settings, f"the model {model}")
    if not takes_texts(engine):
        _refuse_texts(texts)
    column = int(text_column) if text_column.isdecimal() else text_column

    def items() -> Iterator[str]:
        return find_items(engine, paths, texts, text_column=column, path_column=path_column)

    scoring = Scoring(top_k, batch_size or 32, strict, context)
    if output is not None:
        given = [*texts, *map(str, paths)]
        about = {"inputs": given, "columns": [column, path_column], "precision": precision}
        _write(engine, opened.path, items, output, scoring, about)
        return
    _print(engine, items(), scoring, as_json)


def _write(
    engine: "ModelEngine", model: Path, items: Callable[[], Iterator[str]], output: Path,
    scoring: "Scoring", about: dict,
) -> None:  # fmt: skip
    from deepseek.deploy.artefact import sha256
    from deepseek.deploy.scoring import predict_to_file

    with progress("rows", lambda: sum(1 for _ in items())) as show:
        done = predict_to_file(
            engine, items(), output, scoring, about={"model": sha256(model), **about}, on_rows=show
        )
    print(f"{output}: {done.num_rows} rows, {done.num_errors} of them could not be read")
    if done.num_errors:
        raise typer.Exit(NO_RESULT)


def _print(engine: "ModelEngine", items: Iterable[str], scoring: "Scoring", as_json: bool) -> None:
    from deepseek.deploy.scoring import score

    batches = score(engine, items, scoring)
    if as_json:
        rows = [row for batch in batches for row in batch]
        print(json.dumps(rows))
        num_errors = sum("error" in row for row in rows)
    else:
        num_errors = sum(_print_rows(batch) for batch in batches)
    if num_errors:
        typer.echo(f"{num_errors} samples could not be read", err=True)
        raise typer.Exit(NO_RESULT)


def _print_rows(rows: Sequence[dict]) -> int:
    """Print samples and their classes; return how many could not be read."""
    items = [row["file"] if "file" in row else _shortened(row["text"]) for row in rows]
    width = max(map(len, items))
    for item, row in zip(items, rows, strict=True):
        print(f"{item:<{width}}  {row.get('error', _shown(row))}")
    return sum("error" in row for row in rows)


def _shown(said: dict) -> str:
    """Return in words what was predicted: classes, a number, or either for each task."""
    if "tasks" in said:
        return "  ".join(f"{name}: {_shown(each)}" for name, each in said["tasks"].items())
    if "value" in said:
        value = said["value"]
        return " ".join(map(str, value)) if isinstance(value, list) else f"{value:.4g}"
    return ", ".join(f"{each['label']} {each['prob']:.1%}" for each in said.get("top", []))


def _check_given(paths: Sequence[Path], texts: Sequence[str]) -> None:
    from deepseek.errors import ConfigError, DataError

    if not paths and not texts:
        raise ConfigError(
            "there is nothing to predict",
            fix="give pictures, volumes, files of texts, or --text TEXT",
        )
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist", fix="give files or folders that do")


def _refuse_texts(texts: Sequence[str]) -> None:
    from deepseek.errors import ConfigError

    if texts:
        raise ConfigError(
            f"--text {texts[0]!r}, and the model was not trained on text", fix="give pictures"
        )


def _refuse_window_options(given: dict[str, object]) -> None:
    from deepseek.errors import ConfigError

    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if names:
        raise ConfigError(
            f"{', '.join(names)}, and the model was not trained on volumes", fix="leave them out"
        )


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 3] + "..."
