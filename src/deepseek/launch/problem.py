"""A problem with a manifest."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """What is wrong, where, and what to do.

    Args:
        where: object and field.
        what: the value, and the rule it breaks.
        fix: imperative next step.
        is_warning: whether the job can run nevertheless.
    """

    where: str
    what: str
    fix: str
    is_warning: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what} (fix: {self.fix})"
