"""A size that rises in equal parts: of a batch over the first samples, of a sequence over steps."""

from dataclasses import dataclass

from deepseek.errors import ConfigError


@dataclass(frozen=True)
class Ramp:
    """A whole number that rises from `start` to `end`, as a pure function of the position.

    Papers: Smith et al. 2017, arXiv 1711.00489 (batches); Li et al. 2021, arXiv 2108.06084
    (sequences).

    Args:
        start: value at position 0.
        increment: how much larger each part's value is than that of the part before.
        total: position from which on the value is `end`.
        end: last value; the last increment may be smaller.

    Raises:
        ConfigError: `start` is above `end`, or a number is below 1.
    """

    start: int
    increment: int
    total: int
    end: int

    def __post_init__(self) -> None:
        if min(self.start, self.increment, self.total) < 1 or self.start > self.end:
            raise ConfigError(
                f"a ramp from {self.start} by {self.increment} within {self.total} to {self.end}"
                " does not rise",
                fix="give START, INCREMENT and TOTAL of at least 1, and START up to the last value",
            )

    def value(self, position: int) -> int:
        """Return the value at a position, counted from 0."""
        num_parts = -(-(self.end - self.start) // self.increment)
        return min(self.end, self.start + self.increment * (position * num_parts // self.total))
