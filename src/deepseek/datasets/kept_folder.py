"""Folders with what was made of data once: they appear whole, and long work says how far it is."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter

REPORT_EVERY_S = 5.0


def make_beside(folder: Path) -> Path:
    """Return a new folder in `folder`, to write to before `taking_place`.

    Raises:
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".making-", dir=folder))


@contextmanager
def taking_place(temporary: Path, place: Path, marker: str) -> Iterator[None]:
    """Let a folder that is written within take its place; after an error nothing of it stays.

    A folder that another process has put there meanwhile stays, for it may be in use.

    Args:
        temporary: where it is written.
        place: what is there already did not read, and is removed.
        marker: file that a whole folder has: another process may be first, with the same content.
    """
    unread = _identity(place)
    discarded = temporary.with_name(f"{temporary.name}-old")
    try:
        yield
        if unread is not None and _identity(place) == unread:
            with suppress(OSError):  # another process may be about to do the same
                place.rename(discarded)
        try:
            temporary.rename(place)
        except OSError:
            if not (place / marker).is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(discarded, ignore_errors=True)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what no folder that is made later at this place shares; `None` if there is none."""
    try:
        known = os.stat(folder)
    except OSError:
        return None
    return known.st_ino, known.st_ctime_ns


class SlowReport:
    """Says on stderr how far work is, where it takes long.

    Args:
        doing: such as "reading data.csv".
        done: such as "read data.csv".
        unit: of what is counted.
        total: how many there will be; `None`: not known.
    """

    def __init__(self, doing: str, done: str, unit: str, total: int | None = None) -> None:
        self._doing, self._done, self._unit, self._total = doing, done, unit, total
        self._began = self._told = perf_counter()

    def note(self, count: int) -> None:
        """Say how far it is, every few seconds."""
        now = perf_counter()
        if now - self._told >= REPORT_EVERY_S:
            self._told = now
            rate = count / (now - self._began)
            how_far = f"{count:,} {self._unit}, {rate:,.0f}/s"
            if self._total is not None:
                how_far = f"{count:,} of {self._total:,} {self._unit}"
            sys.stderr.write(f"{self._doing}: {how_far}\n")

    def end(self, count: int) -> None:
        """Say how long it took, if anything was said before."""
        if self._told > self._began:
            seconds = perf_counter() - self._began
            sys.stderr.write(f"{self._done}: {count:,} {self._unit} in {seconds:.1f} s\n")
