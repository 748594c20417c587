"""YAML text -> plain values, each with the place where it stands.

YAML 1.2 by ruamel.yaml: `1e-3` is a number, `on` is a text. The nodes are walked here rather than
constructed: nothing in a file can name a Python object, all duplicate keys are found, and aliases
that expand without end run into `MAX_NODES`.
"""

from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    MappingEndEvent,
    MappingStartEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from deepseek.config.problems import Path

MAX_BYTES = 64 * 1024
MAX_NODES = 10_000
MAX_DEPTH = 16
TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Source:
    """Text that settings were read from: a file, or an argument of the command line."""

    name: str
    lines: tuple[str, ...]
    is_file: bool = True


@dataclass(frozen=True)
class Place:
    """A word in a source; `line` and `column` count from 0."""

    source: Source
    line: int
    column: int
    width: int


@dataclass(frozen=True)
class Fault:
    """Something that makes a text unreadable, or that would be read wrongly."""

    place: Place
    code: str
    name: str
    message: str


@dataclass
class Document:
    """The values of a source, and the places of their keys and values."""

    values: Any = None
    keys: dict[Path, Place] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def read_document(text: str, source: Source, at: Path = (), column: int = 0) -> Document:
    """Read YAML `text`, which begins in `column` of the first line of `source`.

    Args:
        text: one YAML document.
        source: where the text comes from, for the places.
        at: path of the document's top in the settings.
        column: characters of `source` before the text.
    """
    document = Document()
    walk = _Walk(document, source, column)
    try:
        walk.require_shallow(text)
        node = YAML(typ="rt", pure=True).compose(text)
        document.values = None if node is None else walk.value(node, at, 0)
    except _Unreadable as error:
        document.faults = [error.fault]
    except (YAMLError, ValueError) as error:
        document.faults = [_syntax_fault(error, walk)]
    return document


class _Unreadable(Exception):
    """Stops the walk; never leaves this file."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault.message)


class _Walk:
    def __init__(self, document: Document, source: Source, column: int) -> None:
        self.document = document
        self.source = source
        self.column = column
        self.count = 0

    def require_shallow(self, text: str) -> None:
        # The parser takes one event after the other, the composer recurses: a line of brackets
        # would cost it seconds.
        depth = 0
        for event in YAML(typ="rt", pure=True).parse(text):
            if isinstance(event, SequenceStartEvent | MappingStartEvent):
                depth += 1
            elif isinstance(event, SequenceEndEvent | MappingEndEvent):
                depth -= 1
            if depth > MAX_DEPTH + 1:
                mark = event.start_mark
                message = f"nested deeper than {MAX_DEPTH} levels"
                raise _Unreadable(self.fault(mark.line, mark.column, message))

    def value(self, node: Node, path: Path, depth: int) -> Any:
        self.count += 1
        if self.count > MAX_NODES:
            raise _Unreadable(self.at(node, f"more than {MAX_NODES} values, aliases expanded"))
        if depth > MAX_DEPTH:
            raise _Unreadable(self.at(node, f"nested deeper than {MAX_DEPTH} levels"))
        self.document.places[path] = self.place(node)
        if isinstance(node, MappingNode):
            return self.mapping(node, path, depth)
        if isinstance(node, SequenceNode):
            self.require_plain_tag(node, ("seq",))
            return [
                self.value(entry, (*path, index), depth + 1)
                for index, entry in enumerate(node.value)
            ]
        if not isinstance(node, ScalarNode):
            raise _Unreadable(self.at(node, "cannot be read"))
        self.require_plain_tag(node, ("str", "int", "float", "bool", "null", "timestamp"))
        return self.scalar(node)

    def mapping(self, node: MappingNode, path: Path, depth: int) -> dict[str, Any]:
        self.require_plain_tag(node, ("map",))
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise _Unreadable(self.at(key_node, "a key must be a single word"))
            key = str(key_node.value)
            here = (*path, key)
            if key == "<<":
                fault = self.at(key_node, "merge keys (<<) are not read; write the keys out")
                self.document.faults.append(fault)
                continue
            if key in values:
                first = self.document.keys[here].line + 1
                name = ".".join(map(str, here))
                message = f"is given twice, first in line {first}"
                place = self.place(key_node)
                self.document.faults.append(Fault(place, "duplicate", name, message))
                continue
            self.document.keys[here] = self.place(key_node)
            values[key] = self.value(value_node, here, depth + 1)
        return values

    def scalar(self, node: ScalarNode) -> Any:
        text = str(node.value)
        kind = str(node.tag).removeprefix(TAG)
        if kind == "null":
            return None
        if kind == "bool":
            if text.lower() not in ("true", "false"):  # `!!bool yes`, or yes after %YAML 1.1
                raise _Unreadable(self.at(node, f"{text} is YAML 1.1; write true or false"))
            return text.lower() == "true"
        if kind == "int":
            return _integer(text)
        if kind == "float":
            return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        return text

    def require_plain_tag(self, node: Node, kinds: tuple[str, ...]) -> None:
        tag = str(node.tag)
        if tag not in {TAG + kind for kind in kinds}:
            raise _Unreadable(self.at(node, f"the tag {tag} is not read; write a plain value"))

    def place(self, node: Node) -> Place:
        start, end = node.start_mark, node.end_mark
        line = self.source.lines[start.line] if start.line < len(self.source.lines) else ""
        column = start.column + (self.column if start.line == 0 else 0)
        last = end.column + (self.column if end.line == 0 else 0)
        width = (last if end.line == start.line else len(line.rstrip())) - column
        return Place(self.source, start.line, column, max(1, width))

    def at(self, node: Node, message: str) -> Fault:
        return Fault(self.place(node), "syntax", "", message)

    def fault(self, line: int, column: int, message: str) -> Fault:
        shift = self.column if line == 0 else 0
        return Fault(Place(self.source, line, column + shift, 1), "syntax", "", message)


def _integer(text: str) -> int:
    text = text.replace("_", "")
    if len(text) > 100:
        raise ValueError(f"a number of {len(text)} digits")
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-").lower()
    for prefix, base in (("0x", 16), ("0o", 8), ("0b", 2)):
        if digits.startswith(prefix):
            return sign * int(digits[2:], base)
    return sign * int(digits)


def _syntax_fault(error: Exception, walk: _Walk) -> Fault:
    if not isinstance(error, MarkedYAMLError):
        return walk.fault(0, 0, " ".join(str(error).split())[:200])
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    message = str(error.problem or error.context)
    if "'\\t'" in message:
        message = "a tab stands where YAML wants spaces"
    elif "another document" in message:
        message = "a second document (---) begins here; one file holds one configuration"
    elif "undefined alias" in message:
        message = f"{message}: an alias (*name) needs its anchor (&name) above it"
    elif "mapping values are not allowed" in message:
        message = "a `key: value` cannot begin here; check the indentation and the line above"
    return walk.fault(line, column, message)
