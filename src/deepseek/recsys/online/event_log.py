"""The log of events: what every kind of it promises.

```
submit(entries)    taken when the future is done: on the disk, at consecutive offsets
read(start, n)     in the order of offsets
```
An entry has an id. One that comes twice gets the offset of the first, and is in the log once; the
same id with another content is refused. Every record has a checksum.
"""

import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import xxhash

from deepseek.errors import ConfigError, DataError
from deepseek.recsys.online.settings import OnlineSettings


@dataclass(frozen=True)
class Record:
    """An entry of the log.

    Attributes:
        offset: its place, from 0.
        time: when the log took it, in seconds; never before that of the record in front.
        content: JSON.
    """

    offset: int
    time: float
    content: bytes


@dataclass(frozen=True)
class Receipt:
    """What became of an entry.

    Attributes:
        offset: where it is in the log.
        is_new: whether it was not there before.
        is_same: whether what is there is the same content.
    """

    offset: int
    is_new: bool = True
    is_same: bool = True


Entry = tuple[str, bytes]
"""Id and content."""


class EventLog(ABC):
    """See the module."""

    @abstractmethod
    def submit(self, entries: Sequence[Entry]) -> "Future[list[Receipt]]":
        """Hand entries over; the future is done when the disk has them.

        Raises:
            LogFullError: too many entries wait.
        """

    @abstractmethod
    def read(self, start: int, limit: int) -> list[Record]:
        """Return the records from an offset on.

        Raises:
            LogDamagedError: a record is not what was written.
        """

    @abstractmethod
    def span(self) -> tuple[int, int]:
        """Return the first offset that is there, and the one that the next entry gets."""

    @abstractmethod
    def trim(self, before: int, older_than: float) -> int:
        """Forget records before an offset and a time; return how many. The newest always stays."""

    @abstractmethod
    def close(self) -> None:
        """Write what waits, and end."""


class LogDamagedError(DataError):
    """A log holds something else than what was written to it."""

    anchor = "event-log"


class LogFullError(DataError):
    """More entries wait for the disk than may."""

    anchor = "event-log"


def id_of(text: str) -> bytes:
    """Return 16 bytes that stand for an id (XXH3-128)."""
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))


def checksum_of(offset: int, time: float, key: bytes, content: bytes) -> int:
    """Return the checksum of a record, a signed 64-bit number."""
    digest = xxhash.xxh3_64(struct.pack("<qd", offset, time))
    digest.update(key)
    digest.update(content)
    return digest.intdigest() - (1 << 63)


def check(offset: int, time: float, key: bytes, content: bytes, checksum: int) -> Record:
    """Return a record that is as it was written.

    Raises:
        LogDamagedError: it is not.
    """
    is_whole = isinstance(key, bytes) and isinstance(content, bytes)
    if not is_whole or checksum_of(offset, time, key, content) != checksum:
        raise LogDamagedError(
            f"the record at offset {offset} does not match its checksum",
            fix="deepseek online salvage cfg.yaml: all records but the damaged ones",
        )
    return Record(offset, time, content)


def records_from(log: EventLog, start: int, limit: int = 4096) -> Iterator[Record]:
    """Yield all records from an offset on."""
    while records := log.read(start, limit):
        yield from records
        start = records[-1].offset + 1


def address_of(settings: OnlineSettings) -> str:
    """Return the address of the server that keeps the log.

    Raises:
        ConfigError: the environment variable that holds it is not set.
    """
    name = settings.log.url_variable
    if name is None:
        return settings.log.url
    if not os.environ.get(name):
        raise ConfigError(
            f"log.url_variable={name}, and there is no such variable", fix=f"export {name}=..."
        )
    return os.environ[name]


def open_log(settings: OnlineSettings, *, writes: bool) -> EventLog:
    """Return the log of a service.

    Args:
        settings: of the service.
        writes: whether entries are added by it; one process may.

    Raises:
        LogDamagedError: it is damaged; the file was set aside.
        ConfigError: it cannot be opened, or another process writes to it.
    """
    if settings.log.kind == "redis":
        from deepseek.recsys.online.redis_log import RedisLog

        return RedisLog(address_of(settings), settings.log.stream, settings.log.max_waiting)
    if settings.log.kind == "kafka":
        from deepseek.recsys.online.kafka_log import KafkaLog

        return KafkaLog(
            address_of(settings), settings.log.stream.replace(":", "."), writes=writes,
            max_waiting=settings.log.max_waiting, options=settings.log.options,
        )  # fmt: skip
    from deepseek.recsys.online.sqlite_log import SqliteLog

    path = Path(settings.folder) / "log" / "events.db"
    return SqliteLog(path, writes=writes, max_waiting=settings.log.max_waiting)
