"""Looking at the meeting points while an agent runs: is ours still there, is a better one back?"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass

from deepseek.launch.endpoint import Endpoint

CHECK_S = 3.0
LOST_AFTER_S = 15.0
"""Without an answer for so long, the host is taken for dead. A cable that is out for less is none
of our business: TCP goes on where it was."""


@dataclass(frozen=True)
class Place:
    """Where a generation meets, and whether this host opens the store there.

    Args:
        endpoint: the meeting point; `None` for a single host.
        index: its place among the candidates.
        is_host: whether this host leads.
    """

    endpoint: Endpoint | None
    index: int
    is_host: bool


class Watch:
    """Says when a generation is to be left although its agent still runs.

    - "lost": the meeting point has not answered for `LOST_AFTER_S`. The agent is killed before it
      gives up by itself: it would close the rendezvous for those that still train there.
    - "returned": somebody listens at an earlier candidate. Then this is one half of a network that
      was cut, the later one; its workers save, and it joins the earlier one.
    """

    def __init__(self, candidates: tuple[Endpoint, ...], place: Place) -> None:
        self.verdict: str | None = None
        self._place = place
        self._earlier = candidates[: place.index]
        self._next_s = self._seen_s = time.monotonic() + CHECK_S

    def look(self) -> signal.Signals | None:
        """Return the signal by which the agent is to end, if it is to end."""
        if self.verdict is not None or time.monotonic() < self._next_s:
            return None
        returned = next((entry for entry in self._earlier if entry.is_listening()), None)
        if returned is not None:
            self.verdict = "returned"
            say(f"{returned} is back: this half of the job stops and joins it")
            return signal.SIGTERM
        endpoint = self._place.endpoint
        if endpoint is None or self._place.is_host or endpoint.is_listening():
            self._seen_s = time.monotonic()
        elif time.monotonic() - self._seen_s > LOST_AFTER_S:
            self.verdict = "lost"
            return signal.SIGKILL
        self._next_s = time.monotonic() + CHECK_S
        return None


def say(text: str) -> None:
    """Print one line of the launcher's own to stderr."""
    with contextlib.suppress(OSError):
        os.write(2, f"launch: {text}\n".encode())
