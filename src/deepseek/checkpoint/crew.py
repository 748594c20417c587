"""Who writes a checkpoint together: one process, or the ranks of a run.

Ranks talk through the key-value store that they met by, not through collectives: a checkpoint is
written by a thread of its own, beside a training that uses those.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from deepseek.errors import CheckpointError, DeepSeekError

POLL_S = 0.005
MAX_POLL_S = 0.1
PART_S = 5.0
END = "end"


class KeyValueStore(Protocol):
    """What is used of `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None:
        """Keep a value."""
        ...

    def get(self, key: str) -> bytes:
        """Return a value that is there."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Return whether there are values of all keys."""
        ...


class Crew:
    """The ranks that save together; by default this process alone.

    Args:
        rank: of this process.
        size: how many there are.
        store: where they leave word for each other.
        timeout_s: how long a rank waits for the others.
        group: name of this set of processes; that of a restart differs.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        store: KeyValueStore | None = None,
        timeout_s: float = 600.0,
        group: str = "",
    ) -> None:
        self.rank = rank
        self.size = size
        self.group = group
        self._store = store
        self._timeout_s = timeout_s
        self._num_saves = 0
        self.has_given_up = False

    def give_up(self) -> None:
        """Wait for nobody any more: a save that is not finished will not be."""
        self.has_given_up = True

    @property
    def is_main(self) -> bool:
        """Whether this rank makes the folder and gives it its name."""
        return self.rank == 0

    def begin(self, step: int) -> "Save":
        """Begin a save: every rank calls it for the same steps, in the same order."""
        self._num_saves += 1
        prefix = f"deepseek/save/{self.group}/{self._num_saves}/{step}"
        return Save(self, prefix, self._store, self._timeout_s)


class Save:
    """One save: what ranks tell each other."""

    def __init__(
        self, crew: Crew, prefix: str, store: KeyValueStore | None, timeout_s: float
    ) -> None:
        self._crew, self._prefix = crew, prefix
        self._store, self._timeout_s = store, timeout_s

    def lead(self, name: str, act: Callable[[], None]) -> None:
        """Let rank 0 act, and the others wait for it.

        They wait twice as long as it waits for them: the rank that is late is named, not rank 0.

        Raises:
            CheckpointError: it failed there.
            OSError: it failed here.
        """
        if self._store is None:
            act()
            return
        key = f"{self._prefix}/{name}"
        if self._crew.is_main:
            try:
                act()
            except Exception as error:  # whatever it is, the others must not wait for it
                with suppress(CheckpointError):  # the first error is the one that is told
                    self._tell(key, _reason(error))
                raise
            self._tell(key, None)
            return
        if (problem := self._wait(key, "rank 0", 2 * self._timeout_s)) is not None:
            raise CheckpointError(f"rank 0: {problem}", fix="free disk space")

    def collect(self, name: str, make: Callable[[], dict]) -> list[dict]:
        """Make something on every rank, and return all of it on rank 0, in order.

        Raises:
            CheckpointError: some rank failed.
            OSError: this one did.
        """
        if self._store is None:
            return [make()]
        own = f"{self._prefix}/{name}/{self._crew.rank}"
        try:
            made = make()
        except Exception as error:
            with suppress(CheckpointError):
                self._tell(own, {"error": _reason(error)})
                self.abort(_reason(error))
            raise
        self._tell(own, {"made": made})
        if not self._crew.is_main:
            return []
        deadline = time.monotonic() + self._timeout_s
        try:
            return [
                self._of(name, rank, max(0.0, deadline - time.monotonic()))
                for rank in range(self._crew.size)
            ]
        except CheckpointError as error:
            with suppress(CheckpointError):
                self.abort(error.message)
            raise

    def _of(self, name: str, rank: int, timeout_s: float) -> dict:
        found = self._wait(f"{self._prefix}/{name}/{rank}", f"rank {rank}", timeout_s)
        if "error" in found:
            raise CheckpointError(f"rank {rank}: {found['error']}", fix="free disk space")
        return found["made"]

    def abort(self, reason: str) -> None:
        """Tell the others, where this is rank 0, that there will be no checkpoint."""
        if self._store is not None and self._crew.is_main:
            self._tell(f"{self._prefix}/{END}", reason)

    def part(self) -> None:
        """Let rank 0 stay until the others are done: it may keep the store, and delete the folder.

        A rank that is dead is not waited for long.
        """
        if self._store is None:
            return
        if not self._crew.is_main:
            with suppress(CheckpointError):  # it is written, whoever has left
                self._tell(f"{self._prefix}/parted/{self._crew.rank}", None)
            return
        keys = [f"{self._prefix}/parted/{rank}" for rank in range(1, self._crew.size)]
        deadline = time.monotonic() + PART_S
        while time.monotonic() < deadline and not self._crew.has_given_up:
            try:
                if self._store.check(keys):
                    return
            except RuntimeError:  # an agent that kept the store is gone; the files are written
                return
            time.sleep(POLL_S)

    def _tell(self, key: str, value: object) -> None:
        if self._store is not None:
            try:
                self._store.set(key, json.dumps(value))
            except RuntimeError as error:
                raise _gone() from error

    def _hear(self, key: str) -> bytes | None:
        if self._store is None:
            raise RuntimeError("one process waits for nobody")
        try:
            return self._store.get(key) if self._store.check([key]) else None
        except RuntimeError as error:
            raise _gone() from error

    def _wait(self, key: str, whom: str, timeout_s: float):
        deadline, pause = time.monotonic() + timeout_s, POLL_S
        while (heard := self._hear(key)) is None:
            if self._crew.has_given_up:
                raise CheckpointError("this rank ends, and waits for the others no longer")
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"{whom} did not save within {self._timeout_s:g} s",
                    fix=f"look at the log of {whom}; earlier checkpoints are intact",
                )
            time.sleep(pause)
            pause = min(MAX_POLL_S, pause * 1.5)
        return json.loads(heard)


def _gone() -> CheckpointError:
    return CheckpointError(
        "the rank that kept the store of the run is gone",
        fix="look at the log of rank 0; earlier checkpoints are intact",
    )


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, DeepSeekError) else str(error)
