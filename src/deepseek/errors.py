"""The exception tree: every error says what happened, how to fix it and where to read on.

```
DeepSeekError                 exit  what
├── ConfigError                 2   an argument, option or configuration file
│   └── MissingExtraError       2   an optional dependency is not installed
├── DataError                   3   a data set or a sample in it
├── CheckpointError             4   a checkpoint or model file, damaged or not ours
├── DivergedError               5   the loss became NaN or infinite
├── CommunicationError          1   another process or host is gone, or does not answer
└── PreemptedError             75   stopped from outside, saved; run again to go on
```
"""

DOCS = "docs/errors.md"


class DeepSeekError(Exception):
    """Base of every error this library raises on purpose.

    Args:
        message: what happened, with name=value and the rule that was broken.
        fix: imperative next step.
        see: anchor in the error catalogue; the class's own by default.
    """

    exit_code = 1
    anchor = ""

    def __init__(self, message: str, *, fix: str | None = None, see: str | None = None) -> None:
        self.message = message
        self.fix = fix
        self.see = see or (f"{DOCS}#{self.anchor}" if self.anchor else None)
        super().__init__(message)

    def __str__(self) -> str:
        lines = [self.message]
        if self.fix:
            lines.append(f"  Fix: {self.fix}")
        if self.see:
            lines.append(f"  See: {self.see}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple:
        # Loader workers send errors to the main process; the default would drop `fix` and `see`.
        return _rebuild, (type(self), self.message, self.fix, self.see)


def _rebuild(cls: type[DeepSeekError], message: str, fix: str | None, see: str | None):
    return cls(message, fix=fix, see=see)


class ConfigError(DeepSeekError, ValueError):
    """An argument or a configuration file breaks a rule."""

    exit_code = 2
    anchor = "config"


class MissingExtraError(ConfigError, ImportError):
    """An optional dependency is used but not installed."""

    anchor = "missing-extra"


class DataError(DeepSeekError, ValueError):
    """A data set, or a sample in it, cannot be used."""

    exit_code = 3
    anchor = "data"


class CheckpointError(DeepSeekError, ValueError):
    """A checkpoint or model file is damaged, foreign or from the future."""

    exit_code = 4
    anchor = "checkpoint"


class DivergedError(DeepSeekError, ArithmeticError):
    """Training diverged: the loss or the gradient is not finite."""

    exit_code = 5
    anchor = "diverged"


class CommunicationError(DeepSeekError):
    """Another process of the run is gone, or does not answer."""

    anchor = "communication"


class PreemptedError(DeepSeekError):
    """The run was stopped from outside and has saved its state."""

    exit_code = 75
    anchor = "preempted"
