"""`trainer.epochs=5` on the command line -> a value in the settings, with its place there."""

import re
from collections.abc import Iterable
from typing import Any

from pydantic_core import PydanticCustomError

from deepseek.config.document import Document, Fault, Place, Source, read_document
from deepseek.config.parallel import parse_plan
from deepseek.config.problems import Path

KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")


def apply_override(argument: str, document: Document) -> Path | None:
    """Write the value of `argument` into `document`; return its path, `None` if it has a fault.

    The value is YAML: `5`, `1e-3`, `null`, `[2, 2]`, `{dim: 64}`. The places of `document` then
    point into the argument, so that a later problem with the value shows the argument.
    """
    source = Source("command line", (argument,), is_file=False)
    key, equals, text = argument.partition("=")
    if not equals or not KEY.fullmatch(key):
        message = "is not of the form section.key=value, such as trainer.epochs=5"
        document.faults.append(_fault(source, 0, len(argument), argument, message))
        return None
    path: Path = tuple(key.split("."))
    if not text.strip():
        message = f"has no value; write {key}=null or {key}='\"\"'"
        document.faults.append(_fault(source, len(key), 1, key, message))
        return None
    read = read_document(text, source, at=path, column=len(key) + 1)
    if read.faults:
        document.faults += read.faults
        return None
    _forget(document, path)
    column = 0
    for depth, part in enumerate(path, start=1):
        place = Place(source, 0, column, len(str(part)))
        if depth == len(path):
            document.keys[path] = place
        else:
            document.keys.setdefault(path[:depth], place)
        column += len(str(part)) + 1
    document.keys.update(read.keys)
    document.places.update(read.places)
    _write(document, path, read.values)
    return path


def settle_twins(document: Document, twins: Iterable[tuple[Path, Path]]) -> None:
    """Drop what the file says of a setting that the command line gives in its other place.

    A configuration that a run has written has both.
    """
    for first, second in twins:
        for here, there in ((first, second), (second, first)):
            if _is_given(document, here) and not _is_given(document, there):
                _forget(document, there)
                _remove(document.values, there)


def _is_given(document: Document, path: Path) -> bool:
    place = document.keys.get(path)
    return place is not None and not place.source.is_file


def _remove(values: Any, path: Path) -> None:
    for part in path[:-1]:
        values = values.get(part) if isinstance(values, dict) else None
    if isinstance(values, dict):
        values.pop(path[-1], None)


def _write(document: Document, path: Path, value: Any) -> None:
    inner = document.values
    for part in path[:-1]:
        if not isinstance(inner.get(part), dict):
            inner[part] = _spelt_out(part, inner.get(part))
        inner = inner[part]
    inner[path[-1]] = value


def _spelt_out(part: str | int, value: Any) -> dict:
    """Return a section that was given as text, such as `parallel: pp2`, to be added to."""
    if part != "parallel" or not isinstance(value, str):
        return {}
    try:
        return dict(parse_plan(value))
    except PydanticCustomError:
        return {value: None}  # no key: what is wrong with the text is told


def _forget(document: Document, path: Path) -> None:
    for places in (document.keys, document.places):
        for known in [known for known in places if known[: len(path)] == path]:
            del places[known]


def _fault(source: Source, column: int, width: int, name: str, message: str) -> Fault:
    return Fault(Place(source, 0, column, max(1, width)), "override", name, message)
