"""Problems with the place where each stands: what the user reads when a file is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

from deepseek.config.document import Document, Fault, Place
from deepseek.config.problems import Path, Problem, shown
from deepseek.errors import ConfigError


@dataclass(frozen=True)
class LocatedProblem:
    """One problem, ready to be shown.

    Args:
        place: the word that is wrong.
        code: kind of problem, `unknown-key`.
        what: the setting and what is wrong with it.
        hint: what stands behind the caret: what was meant, or the next step.
    """

    place: Place
    code: str
    what: str
    hint: str = ""

    @property
    def line(self) -> int:
        """Line in the source, from 1."""
        return self.place.line + 1

    @property
    def column(self) -> int:
        """Column in the line, from 1."""
        return self.place.column + 1

    def text(self) -> str:
        """Return the problem as it is printed: place and rule, the line, the caret."""
        source = self.place.source
        lines = source.lines
        written = lines[self.place.line] if self.place.line < len(lines) else ""
        written = written.replace("\t", " ")
        caret = " " * self.place.column + "^" * min(self.place.width, 40)
        if source.is_file:
            head = f"{source.name}:{self.line}:{self.column}"
            number = f"{self.line:5d} | "
            body = f"{number}{written[:200]}\n{' ' * len(number)}{caret}"
        else:
            head = f"command line: {written}"
            body = f"{' ' * len('command line: ')}{caret}"
        what = f"  {self.what}" if self.what else ""
        if source.is_file:
            return f"{head}  error[{self.code}]{what}\n{body} {self.hint}".rstrip()
        return f"{head}\n{body} error[{self.code}]{what}  {self.hint}".rstrip()


class ConfigFileError(ConfigError):
    """A configuration has problems, in its file or on the command line; `problems` has all."""

    anchor = "config-file"

    def __init__(self, problems: Sequence[LocatedProblem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
        blocks = [problem.text() for problem in problems]
        super().__init__("\n".join([*blocks, f"{count}, nothing was started."]))

    def __reduce__(self) -> tuple:
        return ConfigFileError, (self.problems,)


def locate_fault(fault: Fault) -> LocatedProblem:
    """Return a fault of the text as a problem."""
    what = f"{fault.name} {fault.message}".strip()
    hint = "keep one of the two" if fault.code == "duplicate" else ""
    return LocatedProblem(fault.place, fault.code, what, hint)


def locate(problem: Problem, document: Document, top: Place) -> LocatedProblem:
    """Return `problem` with its place in `document`.

    Args:
        problem: what is wrong.
        document: knows where keys and values stand.
        top: place of what has none of its own, such as a missing section.
    """
    on_value = problem.code in ("type", "value", "contradiction")
    place = _place(problem.path, document, top, on_value)
    if problem.code == "unknown-key":
        return LocatedProblem(place, problem.code, problem.name, _unknown_hint(problem))
    if problem.code == "missing":
        hint = f"add `{problem.path[-1]}`: {problem.message}"
        return LocatedProblem(place, problem.code, problem.name, hint)
    if problem.code == "contradiction":
        return LocatedProblem(place, problem.code, problem.message, problem.suggestion or "")
    if problem.code == "argument":
        what = f"{problem.name}: {problem.message}"
        return LocatedProblem(place, problem.code, what, problem.suggestion or "")
    what = f"{problem.name} = {shown(problem.value)}  {problem.message}"
    return LocatedProblem(place, problem.code, what, problem.suggestion or "")


def in_reading_order(problems: Sequence[LocatedProblem]) -> list[LocatedProblem]:
    """Return the problems of the file from top to bottom, then those of the command line."""
    return sorted(
        problems, key=lambda p: (0, p.line, p.column) if p.place.source.is_file else (1, 0, 0)
    )


def _unknown_hint(problem: Problem) -> str:
    allowed = ", ".join(problem.allowed[:6]) + (", ..." if len(problem.allowed) > 6 else "")
    known = f"(allowed here: {allowed}  `deepseek config schema`)" if allowed else ""
    return f"{problem.suggestion}   {known}" if problem.suggestion else known


def _place(path: Path, document: Document, top: Place, on_value: bool) -> Place:
    if on_value and path in document.places:
        return document.places[path]
    while path:
        if path in document.keys:
            return document.keys[path]
        path = path[:-1]
    return top
