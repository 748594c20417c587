"""What an environment variable of a communication library is: its meaning, default, bad values."""

from dataclasses import dataclass

from deepseek.doctor.finding import Verdict


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Attributes:
        name: as it is set.
        what: what it does, in a line.
        default: what holds where it is not set.
        suspects: values (lower case, `*` for any) that are seldom wise, each with its verdict and
            why.
        mend: what to do about a suspect value; by default to unset it.
    """

    name: str
    what: str
    default: str = "unset"
    suspects: tuple[tuple[str, Verdict, str], ...] = ()
    mend: str = ""

    def suspicion(self, value: str) -> tuple[Verdict, str] | None:
        """Return the verdict on a value and the reason, `None` where nothing is wrong with it."""
        for suspect, verdict, why in self.suspects:
            if suspect in ("*", value.strip().lower()):
                return verdict, why
        return None


def slow(why: str, *values: str) -> tuple[tuple[str, Verdict, str], ...]:
    """Return values that training survives, only slower."""
    return tuple((value, Verdict.WARNING, why) for value in values)


def wrong(why: str, *values: str) -> tuple[tuple[str, Verdict, str], ...]:
    """Return values that training does not survive."""
    return tuple((value, Verdict.PROBLEM, why) for value in values)


OLD_NAME = "an old name"
"""How the reason of a renamed or removed variable begins."""


def renamed(name: str, to: str) -> Variable:
    """Return a variable that is called otherwise today."""
    why = f"{OLD_NAME}, which newer versions ignore or warn about"
    return Variable(
        name, f"now called {to}", suspects=slow(why, "*"), mend=f"set {to} in place of {name}"
    )


def removed(name: str, what: str) -> Variable:
    """Return a variable that nothing reads any more."""
    return Variable(name, what, suspects=slow(f"{OLD_NAME} that has no effect any more", "*"))
