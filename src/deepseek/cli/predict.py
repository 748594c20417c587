"""`deepseek predict`: a model file and pictures -> classes and probabilities."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL.bin", help="Model file of a run.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Pictures or folders.")],
    top_k: Annotated[int, typer.Option(min=1, help="Classes per picture, best first.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is on pictures."""
    files = picture_files(paths)
    from deepseek.models import ModelEngine

    engine = ModelEngine.load(model)
    found = engine.predict([str(file) for file in files], top_k=top_k)
    tops = [prediction.top for prediction in (found if isinstance(found, list) else [found])]
    if as_json:
        results = [
            {"file": str(file), "top": [{"label": label, "prob": prob} for label, prob in top]}
            for file, top in zip(files, tops, strict=True)
        ]
        print(json.dumps(results))
        return
    width = max(len(str(file)) for file in files)
    for file, top in zip(files, tops, strict=True):
        classes = ", ".join(f"{label} {prob:.1%}" for label, prob in top)
        print(f"{file!s:<{width}}  {classes}")


def picture_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files of `paths`, folders replaced by the pictures in them, in order.

    Raises:
        DataError: if a path does not exist, or a folder has no picture.
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
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path} does not exist", fix="give a picture or a folder of them")
    return files
