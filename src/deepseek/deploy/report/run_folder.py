"""The run folder as the report reads it: whatever is there, and the reason for what is not.

A run may be going on, killed, or from a later version. Only a folder in which nothing of a run is
found is an error. The layout is that of docs/design/0001-four-layers.md.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from deepseek.deploy.report.predictions import Predictions, read_predictions
from deepseek.deploy.report.records import Records, parse_json_lines, read_records
from deepseek.errors import DataError

RUN_FILES = ("config.yaml", "environment.json", "metrics.jsonl", "events.jsonl", "summary.json")
MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class RunFolder:
    """Everything the report draws.

    Args:
        path: the folder.
        config: text of config.yaml, "" without one.
        records: metric records by kind.
        predictions: of the validation data; None without them.
        profile: seconds of a step's phases; empty for a run that was not profiled.
        memory_timeline: `ms` and `bytes` over the traced steps.
        missing: what could not be read -> why, in plain text.
        warnings: what was read only in part, in plain text.
    """

    path: Path
    config: str = ""
    environment: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    records: dict[str, Records] = field(default_factory=dict)
    events: list[dict] = field(default_factory=list)
    evaluation: dict = field(default_factory=dict)
    samples: dict[str, list[dict]] = field(default_factory=dict)
    predictions: Predictions | None = None
    profile: dict = field(default_factory=dict)
    memory_timeline: dict = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def class_name(self, label: int) -> str:
        """Return the name of class `label`, or its number where names are not known."""
        return self.class_names[label] if label < len(self.class_names) else f"class {label}"


def read_run_folder(path: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        DataError: if `path` is no folder, or holds no file of a run.
    """
    if not path.is_dir():
        raise DataError(
            f"run_dir={str(path)!r} is not a folder",
            fix="give the folder of a run, such as runs/NAME-1",
        )
    if not any((path / name).is_file() for name in RUN_FILES):
        raise DataError(
            f"run_dir={str(path)!r} holds none of {', '.join(RUN_FILES)}",
            fix="give the folder of a run, such as runs/NAME-1, not the folder above it",
        )
    missing: dict[str, str] = {}
    warnings: list[str] = []
    evaluation = path / "evaluation"
    samples = _read_object(evaluation / "samples.json", missing)
    predictions, reason = read_predictions(evaluation / "predictions.safetensors")
    if reason:
        missing["predictions"] = reason
    return RunFolder(
        path=path,
        config=_read_text(path / "config.yaml", missing),
        environment=_read_object(path / "environment.json", missing),
        summary=_read_object(path / "summary.json", missing),
        records=_read_metrics(path / "metrics.jsonl", missing, warnings),
        events=_read_events(path / "events.jsonl", missing, warnings),
        evaluation=_read_object(evaluation / "metrics.json", missing),
        samples={
            name: [row for row in rows if isinstance(row, dict)]
            for name, rows in samples.items()
            if isinstance(rows, list)
        },
        predictions=predictions,
        profile=_read_object(path / "profile" / "phases.json", {}),
        memory_timeline=_read_object(path / "profile" / "memory.json", {}),
        class_names=_read_class_names(path),
        missing=missing,
        warnings=tuple(warnings),
    )


def _read_text(path: Path, missing: dict[str, str]) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        missing[path.name] = f"this run has no {path.name}."
    except OSError as error:
        missing[path.name] = f"{path.name} cannot be read ({error.strerror})."
    return ""


def _read_object(path: Path, missing: dict[str, str]) -> dict:
    words = _read_text(path, missing)
    if path.name in missing:
        return {}
    try:
        value = json.loads(words)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    missing[path.name] = f"{path.name} is not a JSON object."
    return {}


def _read_metrics(path: Path, missing: dict[str, str], warnings: list[str]) -> dict[str, Records]:
    try:
        records, bad_lines = read_records(path)
    except FileNotFoundError:
        missing[path.name] = f"this run has no {path.name}."
        return {}
    except OSError as error:
        missing[path.name] = f"{path.name} cannot be read ({error.strerror})."
        return {}
    _warn_of_lines(path.name, bad_lines, warnings)
    num_superseded = sum(entry.num_superseded for entry in records.values())
    if num_superseded:
        warnings.append(
            f"{num_superseded:,} metric records were left out:"
            " after a resume the run went through their steps again."
        )
    if not records:
        missing[path.name] = f"{path.name} holds no records."
    return records


def _read_events(path: Path, missing: dict[str, str], warnings: list[str]) -> list[dict]:
    bad_lines: list[int] = []
    lines = _read_text(path, missing).encode("utf-8").splitlines()
    events = parse_json_lines(lines, 1, bad_lines)
    _warn_of_lines(path.name, bad_lines, warnings)
    return events


def _warn_of_lines(name: str, bad_lines: list[int], warnings: list[str]) -> None:
    if bad_lines:
        shown = ", ".join(f"{number:,}" for number in bad_lines[:3])
        shown += ", ..." if len(bad_lines) > 3 else ""
        warnings.append(
            f"{name}: {len(bad_lines):,} unreadable (line {shown}), left out;"
            " a run that is killed can leave half a line."
        )


def _read_class_names(path: Path) -> tuple[str, ...]:
    """Class names from the model file's metadata; the header alone is read."""
    try:
        with safe_open(path / "model.bin", framework="numpy") as file:
            metadata = json.loads((file.metadata() or {}).get("deepseek", "{}"))
        names = metadata["spec"]["class_names"]
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError):
        return ()
    return tuple(str(name) for name in names) if isinstance(names, list) else ()
