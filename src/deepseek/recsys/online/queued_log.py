"""A log that one thread writes to: those who add hand their entries over, and wait for a future.

What waits is written together, so that one wait for the disk, or for a server, is shared by all.
"""

import queue
import threading
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future

from deepseek.recsys.online.event_log import Entry, EventLog, LogFullError, Receipt

MAX_GROUP = 8192
_Group = tuple[list[Entry], "Future[list[Receipt]]", bool]


class QueuedLog(EventLog):
    """See the module; `begin` starts the thread.

    Args:
        max_waiting: entries that may wait.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting, self._num_waiting = max_waiting, 0
        # held for a moment only: those who add must not wait for the disk
        self._counting = threading.Lock()
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def add(self, entries: list[Entry]) -> list[Receipt]:
        """Write entries, in the thread that writes; they are safe when this returns."""

    def begin(self) -> None:
        """Take entries from now on."""
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def submit(self, entries: Sequence[Entry]) -> "Future[list[Receipt]]":
        """Hand entries over; see `EventLog`."""
        done: Future[list[Receipt]] = Future()
        with self._counting:
            if self._num_waiting + len(entries) > self._max_waiting:
                raise LogFullError(
                    f"{self._num_waiting} events wait to be written, the limit is"
                    f" {self._max_waiting}",
                    fix="send them again later",
                )
            self._num_waiting += len(entries)
        self._queue.put((list(entries), done))
        return done

    def end(self) -> None:
        """Write what waits, and take nothing more."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _write(self) -> None:
        ends = False
        while not ends:
            groups, ends = self._take()
            entries = [entry for each, _, _ in groups for entry in each]
            receipts: list[Receipt] = []
            failure = None
            try:
                receipts = self.add(entries) if entries else []
            except Exception as error:  # a full disk, most likely: those who wait must hear of it
                failure = error
            at = 0
            for each, done, is_awaited in groups:
                if is_awaited and failure is not None:
                    done.set_exception(failure)
                elif is_awaited:
                    done.set_result(receipts[at : at + len(each)])
                at += len(each)
            with self._counting:
                self._num_waiting -= len(entries)

    def _take(self) -> tuple[list[_Group], bool]:
        """Return what waits, and whether nothing comes after it; wait for something."""
        groups: list[_Group] = []
        count, found = 0, self._queue.get()
        while found is not None:
            entries, done = found
            # from here on it cannot be cancelled, which would end this thread
            groups.append((entries, done, done.set_running_or_notify_cancel()))
            count += len(entries)
            if count >= MAX_GROUP:
                return groups, False
            try:
                found = self._queue.get_nowait()
            except queue.Empty:
                return groups, False
        return groups, True
