"""`deepseek predict` with a model of volumes: scans -> masks, millilitres, scores."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from deepseek.models import ModelEngine

NO_RESULT = 3
"""Exit code where volumes could not be read."""


@dataclass(frozen=True)
class WindowOptions:
    """How volumes are computed; `None`: as `VolumeSegmenter` has it.

    Attributes:
        overlap: of windows.
        flips: of `d`, `h`, `w`.
        region: `body` or `lungs`.
        compile: whether the model is compiled.
        batch_size: windows at a time.
    """

    overlap: float | None
    flips: str | None
    region: str | None
    compile: bool
    batch_size: int | None


def predict_volumes(
    engine: "ModelEngine",
    paths: Sequence[Path],
    output: Path | None,
    options: WindowOptions,
    context: Callable[[], AbstractContextManager],
    is_strict: bool,
    as_json: bool,
) -> None:
    """Find the classes of the voxels of scans, and print how much of each there is."""
    from deepseek.medical.regions import find_region
    from deepseek.medical.volume_prediction import find_scans, mean_scores, predict_scans
    from deepseek.models import VolumeSegmenter
    from deepseek.models.sliding_window import DEFAULT_OVERLAP

    segmenter = VolumeSegmenter(
        engine,
        overlap=DEFAULT_OVERLAP if options.overlap is None else options.overlap,
        batch_size=options.batch_size or 4,
        flips=_axes(options.flips or ""),
        compiles=options.compile,
        region=None if options.region is None else find_region(options.region),
    )
    scans, rows = find_scans(paths), []
    with _progress(len(scans)) as (on_windows, on_scan), context():
        for row in predict_scans(
            segmenter, scans, output, is_strict=is_strict, on_windows=on_windows
        ):
            on_scan()
            rows.append(row)
            if not as_json:
                print(_line(row))
    means = mean_scores(rows)
    if as_json:
        print(json.dumps({"volumes": rows, **means}))
    elif means:
        print("mean  " + ", ".join(f"{name} {value:.3f}" for name, value in means.items()))
    num_errors = sum("error" in row for row in rows)
    if num_errors:
        typer.echo(f"{num_errors} volumes could not be read", err=True)
        raise typer.Exit(NO_RESULT)


def _axes(flips: str) -> list[int]:
    from deepseek.errors import ConfigError

    if not set(flips) <= set("dhw") or len(set(flips)) < len(flips):
        raise ConfigError(f"flips={flips!r} does not name axes", fix="such as --flips dhw")
    return sorted("dhw".index(axis) for axis in flips)


def _line(row: dict) -> str:
    if "error" in row:
        return f"{row['file']}  {row['error']}"
    parts = []
    for name, amount in row["ml"].items():
        part = f"{name} {amount:.3g} ml"
        if row.get("dice", {}).get(name) is not None:
            part += f" (Dice {row['dice'][name]:.3f})"
        parts.append(part)
    return f"{row['file']}  {', '.join(parts)}"


@contextmanager
def _progress(
    num_scans: int,
) -> Iterator[tuple[Callable[[int, int], None], Callable[[], None]]]:
    """Show volumes and windows that are done, on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        all_scans = progress.add_task("volumes", total=num_scans)
        windows = progress.add_task("windows")
        yield (
            lambda done, total: progress.update(windows, completed=done, total=total),
            lambda: progress.advance(all_scans),
        )
