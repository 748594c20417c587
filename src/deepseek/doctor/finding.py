"""What a check finds: a verdict, what was seen, and how to mend it."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from deepseek.doctor.machine import Machine


class Verdict(StrEnum):
    """How bad it is, mildest first."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; nothing to do on most machines."""
    WARNING = "warning"
    """Training works, slower or less safely than it could."""
    PROBLEM = "problem"
    """Training will fail, hang, or leave the accelerators unused."""

    @property
    def severity(self) -> int:
        """0 for ok up to 3 for a problem."""
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        name: stable id of the check, `area.subject`.
        verdict: how bad it is.
        what: what was seen, in a sentence with its numbers.
        mend: imperative next step; empty where nothing needs mending.
        value: the same as data, for a program that reads the JSON.
    """

    name: str
    verdict: Verdict
    what: str
    mend: str = ""
    value: Any = None

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints for this finding."""
        return asdict(self)


def ok(what: str, value: Any = None) -> Finding:
    """Return a finding without fault; the check gives it its name."""
    return Finding("", Verdict.OK, what, value=value)


def note(what: str, value: Any = None, *, mend: str = "") -> Finding:
    """Return something worth knowing; nothing to mend unless `mend` says so."""
    return Finding("", Verdict.NOTE, what, mend, value)


def warning(what: str, value: Any = None, *, mend: str = "") -> Finding:
    """Return a warning, with the mend of its check unless one is given."""
    return Finding("", Verdict.WARNING, what, mend, value)


def problem(what: str, value: Any = None, *, mend: str = "") -> Finding:
    """Return a problem, with the mend of its check unless one is given."""
    return Finding("", Verdict.PROBLEM, what, mend, value)


Findings = Iterable[Finding]


@dataclass(frozen=True)
class Check:
    """One question to a machine.

    Attributes:
        name: stable id, that of its findings.
        asks: what must hold for all to be well.
        mend: what to do where it does not, in general; a finding may know better.
        look: yields the findings; none where the question does not arise.
    """

    name: str
    asks: str
    mend: str
    look: Callable[[Machine], Findings]

    def __call__(self, machine: Machine) -> list[Finding]:
        """Return what is found; a check that breaks is a finding, not the end of the others."""
        try:
            found = list(self.look(machine))
        except Exception as error:
            kind = type(error).__name__
            found = [
                warning(f"this check itself failed: {kind}: {error}", mend="please report this")
            ]
        return [self._signed(finding) for finding in found]

    def _signed(self, finding: Finding) -> Finding:
        needs_mend = finding.verdict.severity >= Verdict.WARNING.severity
        mend = finding.mend or (self.mend if needs_mend else "")
        return replace(finding, name=self.name, mend=mend)


def check(name: str, *, asks: str, mend: str) -> Callable[[Callable[[Machine], Findings]], Check]:
    """Make a `Check` of the function below."""
    return lambda look: Check(name, asks, mend, look)
