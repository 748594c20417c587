"""SIGTERM, SIGINT and SIGUSR1 ask the run to save and leave; the loop looks between steps."""

import signal
import threading
from types import FrameType, TracebackType

from deepseek.errors import PreemptedError

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}


class StopSignals:
    """Context in which the three signals set `received` instead of ending the process.

    A second SIGINT ends it at once. Outside the main thread signals cannot be caught, and nothing
    changes.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def raise_received(self, saved: str) -> None:
        """Raise what the received signal means, after the state was saved.

        Raises:
            KeyboardInterrupt: SIGINT.
            PreemptedError: SIGTERM (exit code 143) and SIGUSR1 (75).
        """
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt(saved)
        if self.received is not None:
            error = PreemptedError(
                f"stopped by {self.received.name}; {saved}",
                fix="go on with `deepseek train --resume`, or Trainer(..., resume=True)",
            )
            error.exit_code = EXIT_CODES[self.received]
            raise error
