"""Run folders as the commands see them: found by name, read without torch."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepseek.cli.json_figures import json_figures
from deepseek.errors import ConfigError, DataError
from deepseek.registry import nearest

RUNS = Path("runs")
CONFIG = "config.yaml"


@dataclass(frozen=True)
class RunRecord:
    """What the list of runs says about one.

    Args:
        path: the run folder.
        status: `finished`, `stopped`, ...; `unfinished` where the run left no summary.
        epochs: passes over the data that are complete.
        metrics: the best metrics, by name.
        monitor: name of the metric that decides what is best, if known.
        duration_s: seconds of training.
        started: when the run began.
    """

    path: Path
    status: str
    epochs: int
    metrics: dict[str, float]
    monitor: str | None
    duration_s: float | None
    started: datetime

    @property
    def best(self) -> float | None:
        """The best value of the monitored metric."""
        return self.metrics.get(self.monitor) if self.monitor else None

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON-able data."""
        metrics = json_figures(self.metrics)
        return {
            "run": self.path.name,
            "path": str(self.path),
            "status": self.status,
            "epochs": self.epochs,
            "monitor": self.monitor,
            "best": metrics.get(self.monitor) if self.monitor else None,
            "metrics": metrics,
            "duration_s": self.duration_s,
            "started": self.started.isoformat(),
        }


def find_runs(root: Path = RUNS) -> list[Path]:
    """Return the run folders in `root`, the newest last."""
    if not root.is_dir():
        return []
    found = [path.parent for path in root.glob(f"*/{CONFIG}") if not path.parent.is_symlink()]
    return sorted(found, key=lambda run: ((run / CONFIG).stat().st_mtime_ns, run.name))


def find_run(word: str, root: Path = RUNS, name: str = "RUN") -> Path:
    """Return the run folder that `word` means: a folder, a name in `root`, or `latest`.

    Raises:
        ConfigError: if there is none; `name` is what the message calls `word`.
    """
    for folder in (Path(word), root / word):
        if (folder / CONFIG).is_file():
            return folder
    runs = find_runs(root)
    if word == "latest" and runs:
        return runs[-1]
    if not runs:
        fix = "start one with `deepseek train`, or go to the folder that holds runs/"
        raise ConfigError(f"{name}={word}: there is no run in {root}/", fix=fix)
    names = [run.name for run in runs]
    close = nearest(word, names)
    fix = f"did you mean {', '.join(close)}?" if close else f"choose one of: {', '.join(names)}"
    raise ConfigError(f"{name}={word}: no such run in {root}/", fix=fix)


def find_resume(word: str, root: Path = RUNS) -> tuple[Path, Path]:
    """Return what to resume from, and the run it belongs to.

    Args:
        word: a run as in `find_run`, or the folder of one of its checkpoints.
        root: folder of the runs.
    """
    path = Path(word)
    run = path.parent.parent
    if path.name.startswith("step_") and (run / CONFIG).is_file():
        return path, run
    run = find_run(word, root, name="--resume")
    return run, run


def read_record(run: Path) -> RunRecord:
    """Return what is known of the run in folder `run`, finished or not."""
    summary = _read_json(run / "summary.json")
    epochs = [line for line in read_metrics(run) if line.get("kind") == "epoch"]
    last = epochs[-1] if epochs else {}
    best = summary.get("best") or last
    metrics = {key: value for key, value in best.items() if _is_metric(key, value)}
    return RunRecord(
        path=run,
        status=str(summary.get("status", "unfinished")),
        epochs=int(last.get("epoch", 0)),
        metrics=metrics,
        monitor=summary.get("monitor") or _usual_monitor(metrics),
        duration_s=summary.get("time_s", last.get("time_s")),
        started=datetime.fromtimestamp((run / CONFIG).stat().st_mtime, tz=UTC),
    )


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl`; a last line that a kill cut short is left out.

    Raises:
        DataError: if another line is damaged.
    """
    file = run / "metrics.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    read = []
    for number, line in enumerate(lines, start=1):
        try:
            read.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise DataError(
                    f"{file}:{number} is not JSON", fix="remove the line, or restore the file"
                ) from error
    return read


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON", fix="remove the file, or restore it") from error


def flat_settings(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their whole names: `trainer.lr`."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flat_settings(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _is_metric(key: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (key == "loss" or key.startswith("val_"))


def _usual_monitor(metrics: dict[str, float]) -> str | None:
    return next((m for m in ("val_accuracy", "val_loss", "loss") if m in metrics), None)
