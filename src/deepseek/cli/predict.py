"""`deepseek predict`: a model file and pictures or texts -> classes and probabilities."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

MAX_SHOWN = 60


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL.bin", help="Model file of a run.")],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH...", help="Pictures or folders; or files of texts, a line each."
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text, for a model of texts; may be repeated.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of tables with the text.")] = "text",
    top_k: Annotated[int, typer.Option(min=1, help="Classes per sample, best first.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what pictures show, or of which class texts are."""
    paths, texts = paths or [], text or []
    _check_given(paths, texts)
    from deepseek.models import ModelEngine

    engine = ModelEngine.load(model)
    if engine.spec is not None and engine.spec.tokenizer is not None:
        items, kind = find_texts(paths, texts, text_column), "text"
    else:
        _refuse_texts(texts)
        items, kind = [str(file) for file in picture_files(paths)], "file"
    found = engine.predict(items, top_k=top_k)
    tops = [prediction.top for prediction in (found if isinstance(found, list) else [found])]
    if as_json:
        results = [
            {kind: item, "top": [{"label": label, "prob": prob} for label, prob in top]}
            for item, top in zip(items, tops, strict=True)
        ]
        print(json.dumps(results))
        return
    shown = [item if kind == "file" else _shortened(item) for item in items]
    width = max(map(len, shown), default=0)
    for item, top in zip(shown, tops, strict=True):
        classes = ", ".join(f"{label} {prob:.1%}" for label, prob in top)
        print(f"{item:<{width}}  {classes}")


def find_texts(paths: Iterable[Path], texts: Sequence[str], text_column: str) -> list[str]:
    """Return the texts given as such, then those of files: each line, or a column of each row."""
    from deepseek.datasets import read_texts

    column = int(text_column) if text_column.isdecimal() else text_column
    return [*texts, *(text for path in paths for text in read_texts(path, column))]


def picture_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files of `paths`, folders replaced by the pictures in them, in order.

    Raises:
        DataError: if a folder has no picture.
    """
    from deepseek.datasets.picture import SUFFIXES
    from deepseek.errors import DataError

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower().lstrip(".") in SUFFIXES)
            if not inside:
                raise DataError(f"there is no picture in {path}", fix="give another folder")
            files += inside
        else:
            files.append(path)
    return files


def _check_given(paths: Sequence[Path], texts: Sequence[str]) -> None:
    from deepseek.errors import ConfigError, DataError

    if not paths and not texts:
        raise ConfigError(
            "there is nothing to predict", fix="give pictures, files of texts, or --text TEXT"
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


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 3] + "..."
