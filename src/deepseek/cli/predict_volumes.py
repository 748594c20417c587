"""`deepseek predict` with a model of volumes: scans -> masks or findings, scores, a page."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from deepseek.models import ModelEngine, VolumeDetector, VolumeSegmenter

NO_RESULT = 3
"""Exit code where volumes could not be read."""


@dataclass(frozen=True)
class VolumeOptions:
    """How volumes are computed, and what of them is said; `None`: as by default.

    Attributes:
        overlap: of windows.
        flips: of `d`, `h`, `w`.
        region: `body` or `lungs`.
        compile: whether the model is compiled.
        batch_size: windows at a time.
        min_score: of findings of a detector.
        scores: file of a `NoduleScorer`.
        report: a page to be written.
        max_voxels: of a volume.
        abnormal: classes that a DICOM segmentation calls so.
        model: file of the model.
        precision: that it computes in.
    """

    overlap: float | None
    flips: str | None
    region: str | None
    compile: bool | None
    batch_size: int | None
    min_score: float | None
    scores: Path | None
    report: Path | None
    max_voxels: int | None
    abnormal: list[str] | None
    model: Path
    precision: str

    def shown(self) -> dict[str, str]:
        """Return the settings that a report names."""
        names = ("model", "precision", "overlap", "flips", "region", "min_score", "scores")
        given = {name: getattr(self, name) for name in names}
        return {name.replace("_", " "): str(value) for name, value in given.items() if value}


def predict_volumes(
    engine: "ModelEngine",
    paths: Sequence[Path],
    output: Path | None,
    options: VolumeOptions,
    context: Callable[[], AbstractContextManager],
    is_strict: bool,
    as_json: bool,
) -> None:
    """Find classes or centres in scans, and print how much of each there is."""
    from deepseek.medical.calibration import LEAST, VoxelCalibration
    from deepseek.medical.nodule_scorer import NoduleScorer
    from deepseek.medical.scan_findings import finding_scores
    from deepseek.medical.scan_report import ScanReport
    from deepseek.medical.scans import find_scans
    from deepseek.medical.volume_prediction import mean_scores, predict_scans
    from deepseek.models import VolumeSegmenter

    predictor = _make_predictor(engine, options)
    spec, report = predictor.spec, None
    reported = _reported(predictor, options.min_score)
    if reported and not as_json:
        print(reported)
    scorer = None if options.scores is None else NoduleScorer.load(options.scores)
    if options.report is not None:
        _check_page(options.report)
        about = {
            **options.shown(),
            **({"reported": reported} if reported else {}),
            "transform": spec.transform or "none",
        }
        report = ScanReport(spec, about)
    calibration = None
    if isinstance(predictor, VolumeSegmenter):
        calibration = VoxelCalibration(spec.num_classes, least=LEAST)
    scans, rows = find_scans(paths), []
    with _progress(len(scans)) as (on_windows, on_scan), context():
        for row in predict_scans(
            predictor, scans, output, scorer=scorer, is_strict=is_strict, abnormal=options.abnormal,
            calibration=calibration, on_windows=on_windows,
            on_result=report.add if report else lambda result: None,
        ):  # fmt: skip
            on_scan()
            rows.append(row)
            if not as_json:
                print(_line(row))
    if report is not None and options.report is not None:
        report.write(options.report, rows, calibration)
    scores = mean_scores(rows) | finding_scores(rows)
    if calibration is not None and "dice" in scores:
        error, _ = calibration.errors()
        scores |= {} if math.isnan(error) else {"ece": error}
    if as_json:
        print(json.dumps({"volumes": rows, **scores}))
    elif scores:
        print("mean  " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    num_errors = sum("error" in row for row in rows)
    if num_errors:
        typer.echo(f"{num_errors} volumes could not be read", err=True)
        raise typer.Exit(NO_RESULT)


def _make_predictor(
    engine: "ModelEngine", options: VolumeOptions
) -> "VolumeSegmenter | VolumeDetector":
    from deepseek.datasets.volume_file import DEFAULT_MAX_VOXELS
    from deepseek.errors import ConfigError
    from deepseek.medical.regions import find_region
    from deepseek.models import VolumeDetector, VolumeSegmenter, WindowOptions
    from deepseek.models.sliding_window import DEFAULT_OVERLAP
    from deepseek.models.volume_detector import finds_centers

    windows = WindowOptions(
        overlap=DEFAULT_OVERLAP if options.overlap is None else options.overlap,
        batch_size=options.batch_size or 4,
        flips=axes_of(options.flips or ""),
        compiles=bool(options.compile),
        region=None if options.region is None else find_region(options.region),
        max_voxels=options.max_voxels or DEFAULT_MAX_VOXELS,
    )
    if finds_centers(engine.spec):
        return VolumeDetector(engine, windows, min_score=options.min_score)
    if options.min_score is not None:
        raise ConfigError(
            f"--min-score {options.min_score:g} would be ignored: the model is no detector",
            fix="leave it out",
        )
    return VolumeSegmenter(engine, windows)


def _reported(predictor: "VolumeSegmenter | VolumeDetector", given: float | None) -> str | None:
    """Return from which score on a detector reports what it finds, and who says so."""
    from deepseek.models import VolumeDetector

    if not isinstance(predictor, VolumeDetector):
        return None
    why = "as by default: no validation of the model settled it"
    if given is not None:
        why = "as --min-score says"
    elif predictor.spec.min_score is not None:
        why = "1/8 false marks a crop of its validation; --min-score shows more or fewer"
    return f"findings with a score of {predictor.min_score:.3g} and more ({why})"


def _check_page(path: Path) -> None:
    from deepseek.errors import ConfigError

    if path.suffix.lower() not in (".html", ".htm") or not path.parent.is_dir():
        raise ConfigError(
            f"--report {path} is no .html file in a folder that exists", fix="such as report.html"
        )


def axes_of(flips: str) -> list[int]:
    """Return the axes that letters name: 0 for `d`, 1 for `h`, 2 for `w`.

    Raises:
        ConfigError: a letter is another one, or is there twice.
    """
    from deepseek.errors import ConfigError

    if not set(flips) <= set("dhw") or len(set(flips)) < len(flips):
        raise ConfigError(f"flips={flips!r} does not name axes", fix="such as --flips dhw")
    return sorted("dhw".index(axis) for axis in flips)


def _line(row: dict) -> str:
    if "error" in row:
        return f"{row['file']}  {row['error']}"
    if "findings" in row:
        found = row["findings"]
        sure = f", the surest {found[0]['score']:.2f}" if found else ""
        hit = ""
        if "known" in row:
            counted = [each for each in row["known"] if not each["is_excluded"]]
            hit = f"; {sum(each['score'] is not None for each in counted)} of {len(counted)} hit"
        return f"{row['file']}  {len(found)} findings{sure}{hit}"
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

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        all_scans = progress.add_task("volumes", total=num_scans)
        windows = progress.add_task("windows")
        yield (
            lambda done, total: progress.update(windows, completed=done, total=total),
            lambda: progress.advance(all_scans),
        )
