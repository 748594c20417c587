"""`model_config.yaml` and overrides -> `RunConfig`, or every problem with its line and column."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from deepseek.config.document import MAX_BYTES, Document, Place, Source, read_document
from deepseek.config.located import (
    ConfigFileError,
    LocatedProblem,
    in_reading_order,
    locate,
    locate_fault,
)
from deepseek.config.model import ModelConfig
from deepseek.config.overrides import apply_override, settle_twins
from deepseek.config.problems import Path, Problem, shown
from deepseek.config.run import SHARED, RunConfig, resolve
from deepseek.config.validation import check_settings, field_at
from deepseek.errors import ConfigError
from deepseek.registry import nearest

ArgsCheck = Callable[[str, dict[str, Any]], Sequence[tuple[str, str, str | None]]]
"""Architecture and its arguments -> (argument, what is wrong, suggestion) of each that is wrong.

An argument of "" means the architecture itself.
"""

_TWINS: tuple[tuple[Path, Path], ...] = tuple(
    (("trainer", key), (key,) if section is None else (section, key)) for key, section in SHARED
)


@dataclass(frozen=True)
class Change:
    """What an override changed against the file: `before` is the default if the file is silent."""

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.name}: {shown(self.before)} -> {shown(self.after)}"


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration that was read, and what the command line changed in it."""

    config: RunConfig
    changes: tuple[Change, ...]


def load_config(
    path: str | FilePath,
    overrides: Sequence[str] = (),
    *,
    check_args: ArgsCheck | None = None,
) -> RunConfig:
    """Return the configuration in the file at `path`, with `overrides` such as `trainer.lr=3e-4`.

    Args:
        path: YAML 1.2, UTF-8, at most 64 KiB.
        overrides: `section.key=value`, the value in YAML.
        check_args: checks `model.args`; the layer that knows the models gives it.

    Raises:
        ConfigFileError: with every problem; nothing is half read.
        ConfigError: if there is no such file.
    """
    return read_config(path, overrides, check_args=check_args).config


def read_config(
    path: str | FilePath,
    overrides: Sequence[str] = (),
    *,
    check_args: ArgsCheck | None = None,
) -> LoadedConfig:
    """Do what `load_config` does, and return what the overrides changed as well."""
    source, text = _read_source(FilePath(path))
    top = Place(source, 0, 0, 1)
    document = read_document(text, source)
    if not isinstance(document.values, Mapping):
        raise ConfigFileError(
            [*map(locate_fault, document.faults)] or [_not_a_mapping(document, top)]
        )
    before = {}
    for argument in overrides:
        name = argument.partition("=")[0]
        before.setdefault(name, _value(document.values, tuple(name.split("."))))
        if apply_override(argument, document) is None:
            del before[name]
    settle_twins(document, _TWINS)
    config, problems = check_settings(RunConfig, document.values)
    if check_args is not None:
        problems = [*problems, *_args_problems(document.values.get("model"), check_args)]
    located = [*map(locate_fault, document.faults)]
    located += [locate(problem, document, top) for problem in problems]
    if config is None or located:
        raise ConfigFileError(in_reading_order(located))
    changes = (
        Change(name, old, _value(document.values, tuple(name.split("."))))
        for name, old in before.items()
    )
    return LoadedConfig(resolve(config), tuple(c for c in changes if c.before != c.after))


def _read_source(path: FilePath) -> tuple[Source, str]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        close = nearest(path.name, siblings, count=1)
        fix = f"did you mean {path.parent / close[0]}?" if close else "deepseek init digits"
        raise ConfigError(f"configuration file {path} {what}", fix=fix)
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{path} is larger than {MAX_BYTES // 1024} KiB, the limit for a configuration",
            fix="check that this is the right file",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n")
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1)
        lines = tuple(data.decode("utf-8", errors="replace").splitlines())
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        place = Place(Source(str(path), lines), line, column, 1)
        problem = LocatedProblem(place, "encoding", message, "save the file as UTF-8")
        raise ConfigFileError([problem]) from error
    return Source(str(path), tuple(text.splitlines())), text


def _not_a_mapping(document: Document, top: Place) -> LocatedProblem:
    place = document.places.get((), top)
    return LocatedProblem(place, "type", _kind(document.values), "deepseek init digits")


def _kind(values: Any) -> str:
    if values is None:
        return "the file is empty; expected the sections data, model, trainer"
    kind = "a list" if isinstance(values, list) else shown(values)
    return f"the top is {kind}; expected the sections data, model, trainer"


def _value(values: Any, path: Path) -> Any:
    """Return what stands at `path`, or else its default."""
    tree = values
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            known = field_at(RunConfig, path, tree)
            if known is None or known.is_required():
                return None
            return known.get_default(call_default_factory=True)
        values = values[part]
    return values


def _args_problems(values: Any, check_args: ArgsCheck) -> list[Problem]:
    model = check_settings(ModelConfig, values)[0] if isinstance(values, Mapping) else None
    if model is None:
        return []
    found = []
    for key, message, suggestion in check_args(model.architecture, dict(model.args)):
        path: Path = ("model", "args", *key.split(".")) if key else ("model", "architecture")
        found.append(Problem("argument", path, message, suggestion))
    return found
