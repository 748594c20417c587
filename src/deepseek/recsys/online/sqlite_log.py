"""The log of events in one file: SQLite, a journal that is flushed once for a group of entries.

```
events.db        records; with -wal (the newest ones) and -shm while it is open
events.mark      how far the log was acknowledged
```
One thread writes: it takes all entries that wait, adds them in one transaction and waits for the
disk (WAL, `synchronous=FULL`), then says so to all who wait. What a crash has left half written was
acknowledged to nobody, and SQLite cuts it off. What was acknowledged must be there: the mark says
how far that is. It is not flushed, so that after a power cut it may be behind, but never ahead.
"""

import os
import sqlite3
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import xxhash

from deepseek.checkpoint.durable_file import flush_folder
from deepseek.errors import ConfigError
from deepseek.recsys.online.event_log import (
    Entry,
    LogDamagedError,
    Receipt,
    Record,
    check,
    checksum_of,
    id_of,
)
from deepseek.recsys.online.queued_log import QueuedLog
from deepseek.recsys.online.single_writer import hold

_TABLE = """CREATE TABLE IF NOT EXISTS events (
    offset INTEGER PRIMARY KEY, time REAL NOT NULL, key BLOB NOT NULL UNIQUE,
    content BLOB NOT NULL, checksum INTEGER NOT NULL)"""
_COLUMNS = "offset, time, key, content, checksum"
BUSY_MS = 10_000
TRIM_AT_ONCE = 4096
"""Records forgotten in one transaction: entries wait for it."""
LOST = b'{"kind":"lost"}'
_OUTSIDE = tuple(
    f"SQLITE_{name}"
    for name in ("BUSY", "LOCKED", "FULL", "CANTOPEN", "PERM", "READONLY", "PROTOCOL", "IOERR")
)
_OF_READING = tuple(f"SQLITE_IOERR_{name}" for name in ("READ", "SHORT_READ", "DATA", "CORRUPTFS"))


class SqliteLog(QueuedLog):
    """See the module.

    Args:
        path: of the file.
        writes: whether entries are added; one process may at a time.
        max_waiting: entries that may wait for the disk.
        page_bytes: of a new file.

    Raises:
        LogDamagedError: a record is missing or damaged; the files were set aside.
        ConfigError: another process writes to it, or it cannot be opened.
    """

    def __init__(
        self, path: Path, *, writes: bool = True, max_waiting: int = 50_000, page_bytes: int = 4096
    ) -> None:
        super().__init__(max_waiting)
        self.path = Path(path)
        self._lock = threading.Lock()
        if not writes:
            self._reading = self._open("?mode=rw")
            self._reading.execute("PRAGMA query_only=1")
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        said = f"{self.path.parent} is written to by another process"
        self._held = hold(self.path.with_suffix(".lock"), said)
        try:
            _check_not_set_aside(self.path)
            self._db, self._end, self._time = self._verified(page_bytes)
        except Exception:
            os.close(self._held)
            raise
        self._mark = os.open(self._mark_path, os.O_WRONLY | os.O_CREAT, 0o600)
        flush_folder(self.path.parent)
        self._reading = self._open()
        self.begin()

    def _verified(self, page_bytes: int) -> tuple[sqlite3.Connection, int, float]:
        """Return the file, whole, its next offset and newest time; set a damaged one aside."""
        db = self._open()
        try:
            _prepare(db, page_bytes)
            _, end, newest = _verify(db, _read_mark(self._mark_path))
        except (sqlite3.DatabaseError, LogDamagedError) as error:
            db.close()
            if _is_of_outside(error):
                raise self._unopened(error) from error
            raise set_aside(self.path, error) from error
        return db, end, newest

    @property
    def _mark_path(self) -> Path:
        return self.path.with_suffix(".mark")

    def _open(self, query: str = "") -> sqlite3.Connection:
        url = f"file:{quote(os.fsencode(self.path))}{query}"
        try:
            db = sqlite3.connect(url, uri=True, isolation_level=None, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise self._unopened(error) from error
        db.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        return db

    def _unopened(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"{self.path} cannot be opened: {error}",
            fix="look at its disk, and at who has it open; it was left as it is",
        )

    # -- writing -----------------------------------------------------------------------------

    def add(self, entries: list[Entry]) -> list[Receipt]:
        """Write entries in one transaction; see `QueuedLog`."""
        end, newest = self._end, self._time
        try:
            self._db.execute("BEGIN IMMEDIATE")
            found = [self._add(entry) for entry in entries]
            self._db.execute("COMMIT")
        except Exception:
            self._end, self._time = end, newest
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        os.pwrite(self._mark, _mark_of(self._end), 0)
        return found

    def _add(self, entry: Entry) -> Receipt:
        name, content = entry
        key, now = id_of(name), max(time.time(), self._time)
        row = (self._end, now, key, content, checksum_of(self._end, now, key, content))
        done = self._db.execute("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)", row)
        if done.rowcount == 1:
            self._end, self._time = self._end + 1, now
            return Receipt(row[0])
        known = "SELECT offset, content FROM events WHERE key = ?"
        offset, before = self._db.execute(known, (key,)).fetchone()
        return Receipt(offset, is_new=False, is_same=before == content)

    # -- reading -----------------------------------------------------------------------------

    def read(self, start: int, limit: int) -> list[Record]:
        """Return records; see `EventLog`."""
        query = f"SELECT {_COLUMNS} FROM events WHERE offset >= ? ORDER BY offset LIMIT ?"
        with self._lock:
            rows = self._reading.execute(query, (start, limit)).fetchall()
        return [check(*row) for row in rows]

    def span(self) -> tuple[int, int]:
        """Return the first offset, and that of the next entry."""
        with self._lock:
            query = "SELECT min(offset), max(offset) FROM events"
            first, last = self._reading.execute(query).fetchone()
        return (0, 0) if first is None else (first, last + 1)

    def trim(self, before: int, older_than: float) -> int:
        """Forget records; see `EventLog`."""
        first, end = self.span()
        stop, count = min(before, end - 1), 0
        query = "DELETE FROM events WHERE offset < ? AND time < ?"
        while first < stop:
            first = min(stop, first + TRIM_AT_ONCE)
            with self._lock:
                done = self._reading.execute(query, (first, older_than)).rowcount
            count += done
            if done == 0:  # what follows is newer
                break
        return count

    def close(self) -> None:
        """Write what waits, and end."""
        is_writer = self._thread is not None
        self.end()
        if is_writer:
            self._db.close()
            os.close(self._mark)
            os.close(self._held)
        self._reading.close()


def _prepare(db: sqlite3.Connection, page_bytes: int) -> None:
    db.execute(f"PRAGMA page_size={page_bytes}")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute(_TABLE)


def _is_of_outside(error: Exception) -> bool:
    """Return whether a full disk, a lock or the like is what is wrong, and not the file."""
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(_OUTSIDE) and not name.startswith(_OF_READING)


def _mark_of(end: int) -> bytes:
    packed = struct.pack("<q", end)
    return packed + xxhash.xxh3_64_digest(packed)


def _read_mark(path: Path) -> int:
    """Return up to where the log was acknowledged; 0 if that is not known."""
    content = path.read_bytes() if path.exists() else b""
    end = struct.unpack("<q", content[:8])[0] if len(content) == 16 else 0
    return end if content == _mark_of(end) else 0


def _verify(db: sqlite3.Connection, acknowledged: int) -> tuple[int, int, float]:
    """Look at every record; return first offset, next offset, newest time."""
    found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise LogDamagedError(f"SQLite finds: {found[:200]}")
    first, end, newest = None, 0, 0.0
    for row in db.execute(f"SELECT {_COLUMNS} FROM events ORDER BY offset"):
        record = check(*row)
        if first is not None and record.offset != end:
            raise LogDamagedError(f"the records from offset {end} to {record.offset} are missing")
        first = record.offset if first is None else first
        end, newest = record.offset + 1, record.time
    if end < acknowledged:
        raise LogDamagedError(
            f"it ends at offset {end}, and events up to {acknowledged} were acknowledged"
        )
    return first or 0, end, newest


def set_aside(path: Path, why: Exception) -> LogDamagedError:
    """Rename the files of a log; return the error that says so."""
    number = 1
    while (folder := path.parent / f"damaged-{number}").exists():
        number += 1
    folder.mkdir()
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(folder / file.name)
    mark = path.with_suffix(".mark")
    if mark.exists():
        mark.rename(folder / mark.name)
    flush_folder(path.parent)
    reason = getattr(why, "message", str(why))
    return LogDamagedError(
        f"{path} is damaged: {reason}; its files are in {folder} now",
        fix="deepseek online salvage cfg.yaml: a log with all records but the damaged ones",
    )


def _check_not_set_aside(path: Path) -> None:
    if not path.exists() and list(path.parent.glob("damaged-*")):
        raise LogDamagedError(
            f"{path} was set aside before, because it is damaged",
            fix="deepseek online salvage cfg.yaml, or delete the folder to begin anew",
        )


def salvage(path: Path) -> tuple[int, int]:
    """Write a log with all whole records of the newest one that was set aside.

    Records keep their offsets; in the place of one that is lost stands a mark of that, which the
    learner skips.

    Returns:
        How many records were kept, and how many are lost.

    Raises:
        ConfigError: none was set aside, or there is a log already.
        LogDamagedError: not one record can be read.
    """
    path = Path(path)
    folders = sorted(path.parent.glob("damaged-*"), key=lambda each: int(each.name[8:]))
    if path.exists() or not folders:
        raise ConfigError(
            f"there is nothing to salvage in {path.parent}",
            fix="a log is set aside when it is found to be damaged",
        )
    kept = _whole_records(folders[-1] / path.name)
    if not kept:
        raise LogDamagedError(
            f"no record of {folders[-1] / path.name} can be read",
            fix="begin in a new folder with model: the newest version",
        )
    end = max([_read_mark(folders[-1] / path.with_suffix(".mark").name), *(o + 1 for o in kept)])
    first = min(kept, default=end)
    draft = path.with_name(".salvaged.db")
    draft.unlink(missing_ok=True)
    db = sqlite3.connect(draft, isolation_level=None)
    db.execute("PRAGMA synchronous=FULL")
    db.execute(_TABLE)
    db.execute("BEGIN")
    newest = 0.0
    for offset in range(first, end):
        if offset in kept:
            row = kept[offset]
            newest = row[1]
        else:
            key = id_of(f"lost:{offset}")
            checksum = checksum_of(offset, newest, key, LOST)
            row = (offset, newest, key, LOST, checksum)
        db.execute("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)", row)
    db.execute("COMMIT")
    db.close()
    draft.rename(path)
    flush_folder(path.parent)
    return len(kept), end - first - len(kept)


def _whole_records(path: Path) -> dict[int, tuple]:
    """Return the rows whose checksum fits, by offset; both ways from what cannot be read."""
    kept: dict[int, tuple] = {}
    db = sqlite3.connect(path)
    for direction in ("ASC", "DESC"):
        query = f"SELECT {_COLUMNS} FROM events NOT INDEXED ORDER BY offset {direction}"
        try:
            for row in db.execute(query):  # which reads the first one at once
                with suppress(LogDamagedError, TypeError, struct.error):
                    kept[check(*row).offset] = row
        except sqlite3.DatabaseError:
            continue
    db.close()
    return dict(sorted(kept.items()))
