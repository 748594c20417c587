"""One thing that is wrong with a group of settings, and how it reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Code = Literal["unknown-key", "missing", "type", "value", "contradiction", "argument"]
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """A problem at `path`, without the place in a file, which whoever read the file adds.

    Args:
        code: kind of problem, the same for every setting.
        path: keys that lead to the setting.
        message: what is wrong, to be read after the name of the setting.
        suggestion: what was probably meant, `epochs` or `trainer.lr`; or the next step, in words.
        allowed: names that are possible instead, if they help.
        value: what was written.
    """

    code: Code
    path: Path
    message: str
    suggestion: str | None = None
    allowed: tuple[str, ...] = ()
    value: Any = None

    @property
    def name(self) -> str:
        """The path as users write it: `trainer.lr`."""
        return ".".join(str(part) for part in self.path)

    def sentence(self) -> str:
        """Return the problem in one line: `trainer.epochs=0: expected a whole number >= 1`."""
        if self.code in ("type", "value"):
            return f"{self.name}={shown(self.value)}: {self.message}"
        if self.code == "unknown-key":
            return f"unknown setting {self.name}={shown(self.value)}"
        if self.code == "missing":
            return f"{self.name} is missing: {self.message}"
        return self.message

    def advice(self) -> str | None:
        """Return the suggestion, or what is allowed."""
        if self.suggestion:
            return self.suggestion
        return f"choose one of: {', '.join(self.allowed)}" if self.allowed else None


def shown(value: Any) -> str:
    """Return `value` as a message shows it: texts in double quotes, at most 60 characters."""
    text = {True: "true", False: "false", None: "null"}[value] if _is_word(value) else repr(value)
    if isinstance(value, str):
        text = '"' + repr(value)[1:-1] + '"'
    return text if len(text) <= 60 else text[:57] + "..."


def counted(problems: Sequence[Problem]) -> str:
    """Return `1 problem` or `N problems`."""
    return f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)
