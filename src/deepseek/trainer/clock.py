"""Where the time of a step goes; nothing is measured unless somebody asks."""

from contextlib import AbstractContextManager, nullcontext

_UNMEASURED = nullcontext()


class Clock:
    """Measures nothing; `Profiler` is one that does."""

    def phase(self, name: str) -> AbstractContextManager:
        """Return a context for a part of a step: data, forward, backward, optimizer, logging."""
        return _UNMEASURED

    def end_step(self) -> None:
        """A step has ended."""

    def close(self) -> list[str]:
        """Write what was measured, and return it in lines for people."""
        return []
