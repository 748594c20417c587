"""Runs the commands of a paper, and holds what they reach against what was published."""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from deepseek.errors import ConfigError, DataError, DeepSeekError
from deepseek.reproduce.paper import FILE_NAME, Figure, Paper
from deepseek.version import __version__
from deepseek.whole_file import replacing

DATA_VARIABLE = "DEEPSEEK_TEST_DATA"
LOG, RESULT = "log.txt", "result.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """One figure of a run beside the published one.

    Attributes:
        name: what it measures.
        expected: in words.
        published, reached: the figures, in `unit`.
        unit: of both.
        is_reached: the verdict.
    """

    name: str
    expected: str
    published: float
    reached: float
    unit: str
    is_reached: bool

    def as_json(self) -> dict[str, Any]:
        """Return what `result.json` holds of it; JSON has no NaN and no infinity."""
        reached = self.reached if math.isfinite(self.reached) else None
        return {**asdict(self), "reached": reached}


@dataclass(frozen=True)
class Reproduction:
    """A run of a paper's commands.

    Attributes:
        paper: name of its folder.
        outcomes: one for each figure.
        run: folder of the run.
        took_s: seconds.
    """

    paper: str
    outcomes: tuple[Outcome, ...]
    run: Path
    took_s: float

    @property
    def is_reached(self) -> bool:
        """Whether all figures were reached."""
        return all(outcome.is_reached for outcome in self.outcomes)

    def as_json(self) -> dict[str, Any]:
        """Return what `result.json` holds."""
        return {
            "paper": self.paper,
            "is_reached": self.is_reached,
            "figures": [outcome.as_json() for outcome in self.outcomes],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "took_s": round(self.took_s, 1),
            "deepseek": __version__,
            "machine": {
                "system": f"{platform.system()} {platform.machine()}",
                "processor": _processor(),
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
            },
            "log": LOG,
        }


def reproduce(
    name: str,
    paper: Paper,
    papers: Path,
    data: Path | None,
    run: Path,
    say: Say = lambda line: None,
) -> Reproduction:
    """Run the commands of a paper in order, compare, and write `result.json` into the run folder.

    Args:
        name: of the paper's folder.
        paper: what it says.
        papers: folder of all papers.
        data: folder of the data sets.
        run: a new folder, which is made.
        say: called with each line that the commands print.

    Raises:
        DataError: data are missing; names them and where to get them.
        ConfigError: `run` holds a run already.
        DeepSeekError: a command failed, or left no figure.
    """
    require_data(name, paper, data)
    if run.exists() and any(run.iterdir()):
        raise ConfigError(f"--run-dir {run} is not empty", fix="choose another folder")
    run.mkdir(parents=True, exist_ok=True)
    folders = {
        "data": str((data or Path()).absolute()),
        "run": str(run.absolute()),
        "here": str((papers / name).absolute()),
        "papers": str(papers.absolute()),
    }
    began = perf_counter()
    with (run / LOG).open("w", encoding="utf-8") as log:
        for command in paper.commands:
            words = _fill(command, folders, name)
            _run(words, _command_line(words), run / LOG, lambda line: _tell(line, log, say))
    outcomes = tuple(_compare(figure, run) for figure in paper.figures)
    found = Reproduction(name, outcomes, run, perf_counter() - began)
    with replacing(run / RESULT) as draft:
        draft.write_text(json.dumps(found.as_json(), indent=1, ensure_ascii=False) + "\n")
    return found


def require_data(name: str, paper: Paper, data: Path | None) -> None:
    """Look for the data of a paper before anything is started.

    Raises:
        DataError: some are missing.
    """
    if not paper.data:
        return
    wanted = "; ".join(f"{need.name} from {need.source}, as {need.path}" for need in paper.data)
    if data is None:
        raise DataError(
            f"{name} needs data: {wanted}",
            fix=f"get them, and name their folder by --data or {DATA_VARIABLE}",
        )
    missing = [need for need in paper.data if not (data / need.path).exists()]
    if missing:
        raise DataError(
            f"{name}: no {', '.join(need.path for need in missing)} in {data}",
            fix="get "
            + "; ".join(f"{need.name} from {need.source}" for need in missing)
            + ", or name another folder by --data",
        )


def _fill(command: Sequence[str], folders: dict[str, str], name: str) -> list[str]:
    """Put folders for the words in braces."""
    try:
        return [word.format_map(folders) for word in command]
    except (KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"{name}/{FILE_NAME}: a command has braces around {error}",
            fix=f"known are {', '.join(f'{{{folder}}}' for folder in folders)}",
        ) from error


def _command_line(words: Sequence[str]) -> list[str]:
    """Return what is started for words that begin with `deepseek` or `python`: as this process."""
    start = [sys.executable, "-m", "deepseek.cli.main"]
    return [*(start if words[0] == "deepseek" else start[:1]), *words[1:]]


def _tell(line: str, log, say: Say) -> None:
    log.write(line + "\n")
    log.flush()
    say(line)


def _run(words: list[str], command_line: list[str], log: Path, tell: Say) -> None:
    tell(f"$ {shlex.join(words)}")
    # unbuffered: what is printed is seen while it goes on
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command_line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        text=True, encoding="utf-8", errors="replace", env=env,
    ) as child:  # fmt: skip
        try:
            for line in child.stdout or ():
                tell(line.rstrip("\n"))
        except BaseException:
            child.terminate()
            raise
    if child.returncode:
        raise DeepSeekError(
            f"`{' '.join(words[:3])} ...` ended with code {child.returncode}",
            fix=f"read {log}",
        )


def _compare(figure: Figure, run: Path) -> Outcome:
    value = _read_figure(run / figure.file, figure.key) * figure.factor
    return Outcome(
        figure.name, figure.describe(), figure.expected, value, figure.unit,
        figure.is_reached(value),
    )  # fmt: skip


def _read_figure(file: Path, key: str) -> float:
    try:
        text = file.read_text(encoding="utf-8")
        is_lines = file.suffix == ".jsonl"
        records = [json.loads(line) for line in (text.splitlines() if is_lines else [text])]
    except (OSError, ValueError) as error:
        raise DeepSeekError(
            f"the commands left no figure in {file}: {error}", fix=f"read {file.parent / LOG}"
        ) from error
    values = [value for record in records if (value := _dig(record, key)) is not None]
    if not values:
        raise DeepSeekError(f"{file} has no number called {key}", fix=f"correct {FILE_NAME}")
    return float(values[-1])


def _dig(record: Any, key: str) -> float | None:
    for part in key.split("."):
        if isinstance(record, list) and part.isdigit() and int(part) < len(record):
            record = record[int(part)]
        elif isinstance(record, dict) and part in record:
            record = record[part]
        else:
            return None
    is_number = isinstance(record, int | float) and not isinstance(record, bool)
    return record if is_number else None


def _processor() -> str:
    from deepseek.doctor.machine import Machine

    text = Machine().read("/proc/cpuinfo") or ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()
