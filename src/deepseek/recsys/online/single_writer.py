"""A folder that one process alone may write to."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from deepseek.errors import ConfigError

LETS_GO_S = 10.0
"""How long a process that was killed may take to let go: it may be in the midst of a flush."""
POLL_S = 0.05


def hold(path: Path, said: str, stops: Callable[[], bool] = lambda: False) -> int:
    """Return the open file that holds a lock; closed, it lets go.

    Args:
        path: of the lock.
        said: in words, what another process does.
        stops: asked while it waits for one that may be about to end.

    Raises:
        ConfigError: another process has it.
    """
    held = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + LETS_GO_S
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() < until and not stops():
                time.sleep(POLL_S)
                continue
            os.close(held)
            raise ConfigError(
                said, fix="end that service first, or choose another folder"
            ) from error
        return held
