"""The folder of a run: numbered, never overwritten, readable without this library."""

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from deepseek.errors import CheckpointError, ConfigError
from deepseek.version import __version__
from deepseek.whole_file import replacing

RUNS = Path("runs")
REPORTED_PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "pillow")


class RunFolder:
    """Paths and appenders of one run.

    Args:
        path: the folder.
        is_writer: whether this process writes; on several ranks one does.
    """

    def __init__(self, path: Path, is_writer: bool = True) -> None:
        self.path = Path(path)
        self.is_writer = is_writer
        self.checkpoints = self.path / "checkpoints"
        self.evaluation = self.path / "evaluation"
        self.model = self.path / "model.bin"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.log = self.path / "log.txt"
        self._unwritten: list[str] = []

    @classmethod
    def create(cls, name: str, path: str | Path | None = None, output: Path = RUNS) -> "RunFolder":
        """Make `OUTPUT/NAME-N` with the next free N, or exactly `path`, which must hold no run yet.

        Raises:
            ConfigError: `path` holds a run already, or the folder cannot be made.
        """
        try:
            if path is not None:
                return cls._create_at(Path(path))
            number = 1
            while True:
                try:
                    (output / f"{name}-{number}").mkdir(parents=True)
                    return cls(output / f"{name}-{number}")
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise ConfigError(
                f"the run folder cannot be made in output={str(output)!r}: {error}"
                if path is None
                else f"the run folder cannot be made: {error}",
                fix="choose another output, or run_dir",
            ) from error

    @classmethod
    def _create_at(cls, path: Path) -> "RunFolder":
        if (path / "metrics.jsonl").exists():
            raise ConfigError(
                f"run_dir={str(path)!r} holds a run already",
                fix="choose another run_dir, or resume it with resume=True",
            )
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def find(
        cls,
        name: str,
        path: str | Path | None,
        resume: str | Path | bool,
        output: Path = RUNS,
    ) -> "RunFolder":
        """Return the run to resume: what `resume` names, else `path`, else the newest.

        Raises:
            CheckpointError: there is no such run.
        """
        if not isinstance(resume, bool):
            folder = Path(resume)
        elif path is not None:
            folder = Path(path)
        else:
            folder = cls.newest(name, output) or output
        if folder.name.startswith("step_"):
            folder = folder.parent.parent
        if not (folder / "checkpoints").is_dir():
            raise CheckpointError(
                f"no checkpoints to resume from in {str(folder)!r}",
                fix="give the run folder: resume='runs/NAME-N'",
            )
        return cls(folder)

    @property
    def has_saved(self) -> bool:
        """Whether there is something to resume from."""
        return any(self.checkpoints.glob("step_*"))

    def begin_anew(self) -> None:
        """Let a run that ended before it had saved anything begin again; log and events stay."""
        self.metrics.unlink(missing_ok=True)

    @staticmethod
    def newest(name: str, output: Path = RUNS) -> Path | None:
        """Return the `OUTPUT/NAME-N` of the largest N, `None` where there is none."""
        found = [run for run in output.glob(f"{name}-*") if run.name[len(name) + 1 :].isdigit()]
        return max(found, key=lambda run: int(run.name[len(name) + 1 :]), default=None)

    def write_json(self, name: str, body: dict) -> None:
        """Write `body` as the file `name`, whole or not at all.

        Of a name that is no UTF-8, such as a folder's, the bytes are escaped as JSON escapes them.
        """
        if not self.is_writer:
            return
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(body, indent=1, ensure_ascii=False) + "\n"
        with replacing(path) as draft:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")

    def add_event(self, kind: str, **details: object) -> None:
        """Append a line to `events.jsonl`; where the disk is full, with a later one."""
        if not self.is_writer:
            return
        event = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "kind": kind, **details}
        self._unwritten.append(json.dumps(event) + "\n")
        with suppress(OSError), self.events.open("a", encoding="utf-8") as file:
            file.write("".join(self._unwritten))
            file.flush()
            self._unwritten.clear()

    def write_text(self, name: str, text: str) -> None:
        """Write a file."""
        if self.is_writer:
            (self.path / name).write_text(text, encoding="utf-8")

    def read_events(self) -> list[dict]:
        """Return the events, oldest first; a line that was cut off is left out."""
        events = []
        if not self.events.exists():
            return events
        for line in self.events.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                events.append(json.loads(line))
        return events

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of `metrics.jsonl` after `step`: a resumed run writes them again."""
        if not self.is_writer or not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                is_past = json.loads(line)["step"] <= step
            except (ValueError, KeyError):
                continue  # the half line of a killed process
            if is_past:
                kept.append(line + "\n")
        aside = self.metrics.with_name(".metrics.new")
        aside.write_text("".join(kept), encoding="utf-8")
        aside.replace(self.metrics)


def describe_environment(seed: int, device: torch.device) -> dict:
    """Return versions, machine, git revision, arguments and seed."""
    packages = {}
    for package in REPORTED_PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "deepseek": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "device": describe_device(device),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git": _git_revision(),
        "argv": sys.argv,
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_device(device: torch.device) -> str:
    """Return the name of the chip, as a person would say it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
        return f"{name} x{os.cpu_count()}"
    return device.type


def _git_revision() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
