"""What became of every tensor of a conversion, and what had to be assumed."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

KINDS = ("mapped", "transposed", "fused", "padded", "tied", "added", "unused")
"""In the order in which they are told.

- mapped: under another name, or the same
- transposed: rows and columns exchanged
- fused: one of several that became one
- padded: given rows that pad a vocabulary
- tied: a second name of a tensor that is shared
- added: of ours, with no counterpart, filled with what changes nothing
- unused: of theirs, left out for the reason given
"""


@dataclass(frozen=True)
class Fate:
    """What became of a tensor.

    Attributes:
        kind: one of `KINDS`.
        theirs: its name where it came from; empty if it is added.
        ours: its name in our model; empty if it is unused.
        note: why, where the kind does not say it.
        is_lost: whether it is unused and cannot be computed anew.
    """

    kind: str
    theirs: str
    ours: str
    note: str = ""
    is_lost: bool = False


@dataclass(frozen=True)
class Assumption:
    """A value that the weights do not tell.

    Attributes:
        name: argument of the architecture.
        value: what was taken.
        reason: where from.
    """

    name: str
    value: object
    reason: str


@dataclass
class Report:
    """Everything that was done to weights on their way into or out of this library.

    Attributes:
        source: where they come from.
        family: how they are spelled, such as "bert (huggingface)"; empty where nothing was known.
        architecture: our name of the model.
        fates: one per tensor.
        assumptions: values that had to be assumed.
        notes: anything else that a reader must know.
    """

    source: str
    family: str
    architecture: str
    fates: list[Fate] = field(default_factory=list)
    assumptions: list[Assumption] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Fate]:
        """Return the fates of one kind."""
        return [fate for fate in self.fates if fate.kind == kind]

    @property
    def lost(self) -> list[str]:
        """Names of the tensors that were left out and cannot be computed anew."""
        return [fate.theirs for fate in self.fates if fate.is_lost]

    def summary(self) -> str:
        """Return a few lines: tensors of each kind by number, all left out, what is assumed."""
        counts = Counter(fate.kind for fate in self.fates)
        numbers = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
        lines = [f"{self.source}: {self.family or 'of no known family'} -> {self.architecture}"]
        if numbers:
            lines.append(f"  tensors: {numbers}")
        lines += [f"  unused: {fate.theirs} ({fate.note})" for fate in self.of_kind("unused")]
        lines += [
            f"  assumed: {each.name}={each.value!r} ({each.reason})" for each in self.assumptions
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def table(self) -> str:
        """Return a line per tensor."""
        width = max((len(fate.theirs) for fate in self.fates), default=0)
        return "\n".join(
            f"{fate.kind:<10} {fate.theirs:<{width}} -> {fate.ours or '(nothing)'}"
            + (f"  [{fate.note}]" if fate.note else "")
            for fate in self.fates
        )

    def to_json(self) -> Mapping:
        """Return all of it, JSON-able."""
        return asdict(self)
