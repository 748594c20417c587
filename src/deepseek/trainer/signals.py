"""SIGTERM, SIGINT and SIGUSR1: save and leave within five seconds, wherever the run is.

```
between steps, micro-batches,    the loop looks, saves and leaves
batches of an evaluation
elsewhere (a long backward,      after GRACE_S a thread saves the state at the last step boundary;
a compilation, a stuck loader)   if the loop does not come round, the process ends
```
On several ranks a signal only counts once all have agreed on it, in the reduction of a step or
between the batches of an evaluation: then they save together. A rank that does not get that far in
RANK_GRACE_S ends without saving; the last checkpoint stands.

The signal wakes the thread through a socket that C writes to: Python code of the main thread need
not run for it.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from deepseek.errors import PreemptedError

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
if hasattr(signal, "SIGUSR1"):
    EXIT_CODES[signal.SIGUSR1] = 75
GRACE_S = 2.0
LEAVE_S = 1.0
RANK_GRACE_S = 25.0


class StopRequested(Exception):
    """Raised in the midst of a step or an evaluation: leave it, the loop will save."""


class StopSignals:
    """Context in which the three signals save and end the run instead of the process.

    A second SIGINT ends it at once. Outside the main thread signals cannot be caught, and nothing
    changes.

    Args:
        save: writes the state of the last step boundary and says where, in words; called once,
            from the loop or from the watching thread, with `lock` held.
        ends_process: whether the process may be ended where the loop does not come round; not in
            a notebook.
        is_alone: whether a signal counts at once; otherwise `take` says when.
    """

    def __init__(
        self,
        save: Callable[[], str],
        ends_process: bool | None = None,
        *,
        is_alone: bool = True,
    ) -> None:
        self._is_alone = is_alone
        self._counts = is_alone
        self.received: signal.Signals | None = None
        self.lock = threading.RLock()
        self._save = save
        self._saved: str | None = None
        self._ends_process = not hasattr(sys, "ps1") if ends_process is None else ends_process
        self._previous: dict = {}
        self._has_left = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        for number in EXIT_CODES:
            self._previous[number] = signal.signal(number, self._receive)
        self._previous_wakeup = signal.set_wakeup_fd(
            self._writer.fileno(), warn_on_full_buffer=False
        )
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._has_left.set()
        if self._thread is None:
            return
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        # not `close` alone: loader workers were forked with a copy of the socket
        self._writer.shutdown(socket.SHUT_RDWR)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)

    # -- the loop ----------------------------------------------------------------------------

    @property
    def is_pending(self) -> bool:
        """Whether a signal has come that the other ranks do not know of."""
        return self.received is not None and not self._counts

    def take(self, number: int) -> None:
        """All ranks have agreed to leave for this signal, which may have come to another."""
        self.received = signal.Signals(number)
        self._counts = True

    def check(self) -> None:
        """Leave what can be begun again.

        Raises:
            StopRequested: a signal has come.
        """
        if self.received is not None and self._counts:
            raise StopRequested

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Hold off the watching thread while the state changes.

        Raises:
            PreemptedError, KeyboardInterrupt: it has saved already; nothing may change now.
        """
        with self.lock:
            if self._saved is not None:
                self._raise(self._saved)
            yield

    def leave_if_asked(self) -> None:
        """Between steps: save and leave if a signal has come.

        Raises:
            KeyboardInterrupt: SIGINT.
            PreemptedError: SIGTERM (exit code 143) and SIGUSR1 (75).
        """
        if self.received is None or not self._counts:
            return
        with self.lock:
            if self._saved is None:
                if not self._is_alone:
                    self._has_left.set()  # all have come: a long save is not cut short
                self._saved = self._save()
        self._raise(self._saved)

    def _raise(self, saved: str) -> None:
        self._has_left.set()
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt(saved)
        name = self.received.name if self.received else "a signal"
        error = PreemptedError(
            f"stopped by {name}; {saved}",
            fix="go on with `deepseek train --resume`, or Trainer(..., resume=True)",
        )
        error.exit_code = EXIT_CODES.get(self.received, 75) if self.received else 75
        raise error

    # -- the watching thread -----------------------------------------------------------------

    def _watch(self) -> None:
        number = self._wait_for_signal()
        if number is None or self._has_left.wait(GRACE_S):
            return
        if not self._is_alone:
            if not self._has_left.wait(RANK_GRACE_S - GRACE_S) and self._ends_process:
                self._end("the last checkpoint stands")
            return
        with self.lock:
            if self._has_left.is_set():
                return
            self.received = self.received or signal.Signals(number)
            if self._saved is None:
                self._saved = self._save()
        if self._has_left.wait(LEAVE_S) or not self._ends_process:
            return
        self._end(self._saved)

    def _end(self, state: str) -> None:
        received = self.received or signal.SIGTERM
        sys.stderr.write(f"stopped by {received.name}; {state}\n")
        sys.stderr.flush()
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(EXIT_CODES[received])

    def _wait_for_signal(self) -> int | None:
        """Return the number of the first of our signals, or `None` when the run is over."""
        with contextlib.suppress(OSError):
            while received := self._reader.recv(64):
                for number in received:
                    if number in EXIT_CODES:
                        return number
        return None
