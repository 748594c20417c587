"""What `paper.yaml` of a folder says: whose figure, how large, and the commands that reach it."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepseek.config.settings import Number, Settings, Switch, Whole
from deepseek.config.validation import validate_settings
from deepseek.errors import ConfigError
from deepseek.registry import did_you_mean

FILE_NAME = "paper.yaml"
PROGRAMS = ("deepseek", "python")
Name = Annotated[str, Field(min_length=1)]


class Figure(Settings):
    """One published figure, and where a run leaves its own."""

    name: Name
    """What it measures."""
    expected: Number
    """As published, in `unit`."""
    unit: str = ""
    """Behind the number: `%`, `nats`."""
    direction: Literal["equal", "at_least", "at_most"] = "equal"
    """Which figures count as reached."""
    tolerance: Annotated[Number, Field(ge=0)] = 0.0
    """By how much a figure may miss, in `unit`."""
    source: Name
    """Where it was published: table, section, README."""
    file: Name
    """Of the run folder: JSON, or JSON lines, of which the last that has the key counts."""
    key: Name
    """In the file; of what lies deeper `records.0.accuracy`."""
    factor: Number = 1.0
    """From the number in the file to `unit`."""

    def is_reached(self, value: float) -> bool:
        """Return whether a figure that was measured is as good as the published one."""
        if not math.isfinite(value):
            return False
        # decimals of a percentage are no binary numbers
        slack = self.tolerance + 1e-9 * max(1.0, abs(self.expected))
        if self.direction == "at_least":
            return value >= self.expected - slack
        if self.direction == "at_most":
            return value <= self.expected + slack
        return abs(value - self.expected) <= slack

    def describe(self) -> str:
        """Return what is expected, in words.

        Example:
            `at least 91.25 %`, `91.73 % ± 0.005`.
        """
        word = {"equal": "", "at_least": "at least ", "at_most": "at most "}[self.direction]
        margin = f" ± {self.tolerance:g}" if self.tolerance else ""
        return f"{word}{self.show(self.expected)}{margin}"

    def show(self, value: float) -> str:
        """Return a figure with its unit."""
        return f"{value:.6g} {self.unit}".rstrip()


class DataNeed(Settings):
    """Data that a run reads."""

    name: Name
    """Of the data set."""
    path: Name
    """Below the data folder."""
    source: Name
    """Where to get it."""


class Measured(Settings):
    """A run that was made."""

    date: Name
    """Of the run: 2026-11-26."""
    values: list[Number]
    """What was reached, in the order of `figures`."""
    machine: Name
    """Chip, cores, versions."""
    time: Name
    """That it took."""
    log: str = ""
    """File of the folder with what the run printed."""


class Paper(Settings):
    """A paper, or other published work, and its figures."""

    title: Name
    authors: Name
    year: Annotated[Whole, Field(ge=1900, le=2100)]
    arxiv: str = ""
    """Number at arXiv."""
    figures: Annotated[list[Figure], Field(min_length=1)]
    seed: Whole = 0
    """Of the run."""
    commands: Annotated[list[Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    """In order; words in braces are folders: `{data}`, `{run}`, `{here}`, `{papers}`."""
    data: list[DataNeed] = Field(default_factory=list)
    gpu: Switch = False
    """Whether it is meant for a GPU: on a CPU it takes days."""
    time: Name
    """About how long a run takes, and on what; or that nobody knows yet."""
    measured: list[Measured] = Field(default_factory=list)
    """Runs, the newest last."""
    notes: str = ""
    """What differs from the paper."""

    def status(self) -> str:
        """Return what became of the newest run, in a few words."""
        if not self.measured:
            return "not run"
        newest = self.measured[-1]
        pairs = list(zip(self.figures, newest.values, strict=True))
        is_reached = all(figure.is_reached(value) for figure, value in pairs)
        values = ", ".join(figure.show(value) for figure, value in pairs)
        return f"{'reached' if is_reached else 'not reached'}: {values} ({newest.date})"


def read_papers(folder: Path) -> dict[str, Paper]:
    """Return all papers below `folder`, by the names of their folders.

    Raises:
        ConfigError: there are none, or one cannot be read.
    """
    files = sorted(folder.glob(f"*/{FILE_NAME}"))
    if not files:
        raise ConfigError(
            f"--from {folder}: no folder with a {FILE_NAME} in it; they come with the source, not"
            " with the installed package",
            fix="git clone the repository, and run this inside it or with --from CLONE/reproduce",
        )
    return {file.parent.name: _read(file) for file in files}


def find_paper(name: str, papers: dict[str, Paper]) -> Paper:
    """Return the paper called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in papers:
        raise ConfigError(
            f"there is nothing called {name!r} to reproduce", fix=did_you_mean(name, papers)
        )
    return papers[name]


def _read(file: Path) -> Paper:
    try:
        values = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{file} cannot be read: {reason}", fix="correct the file") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds no settings", fix="write title: ..., figures: ...")
    try:
        paper = validate_settings(Paper, values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.message}", fix=error.fix) from error
    for run in paper.measured:
        if len(run.values) != len(paper.figures):
            raise ConfigError(
                f"{file}: {len(run.values)} values of {run.date} for {len(paper.figures)} figures",
                fix="give one for each figure",
            )
    for command in paper.commands:
        if command[0] not in PROGRAMS:
            raise ConfigError(
                f"{file}: the command {command[0]!r} is neither of {', '.join(PROGRAMS)}",
                fix="begin each command with one of them",
            )
    return paper
