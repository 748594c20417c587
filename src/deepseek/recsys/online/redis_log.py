"""The log of events in a Redis stream, for more than one machine.

```
STREAM          the stream; the id of an entry is its offset + 1
STREAM:keys     event id -> offset, of what is in the stream
STREAM:state    next offset and newest time
```
A script adds entries, so that an id that is known is not added again, whoever asks at a time. The
server must flush every write before it answers (`appendonly yes`, `appendfsync always`): else it
would acknowledge what a power cut can take, and is refused.
"""

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepseek.errors import CommunicationError, ConfigError
from deepseek.recsys.online.event_log import (
    Entry,
    Receipt,
    Record,
    check,
    checksum_of,
    id_of,
)
from deepseek.recsys.online.queued_log import QueuedLog
from deepseek.registry import import_extra

MAX_GROUP = 1024
ANSWERS_S = 10.0
"""A server that is silent for longer does not answer; the address may say otherwise."""
# keys and contents come in pairs; the checksum needs the offset, so the client writes it: it says
# what offsets it reckons with, and begins again if another was faster
_ADD = """
local at = tonumber(redis.call('HGET', KEYS[3], 'next') or '0')
local found = {}
local new = 0
for i = 3, #ARGV, 4 do
  local known = redis.call('HGET', KEYS[2], ARGV[i])
  if known then
    found[#found + 1] = known
  else
    new = new + 1
    if tonumber(ARGV[i + 1]) ~= at then return {-1} end
    redis.call('XADD', KEYS[1], string.format('%d-0', at + 1), 't', ARGV[2], 'k', ARGV[i],
      'c', ARGV[i + 2], 's', ARGV[i + 3])
    redis.call('HSET', KEYS[2], ARGV[i], at)
    at = at + 1
    redis.call('HSET', KEYS[3], 'next', at, 'time', ARGV[1])
    found[#found + 1] = at - 1
  end
end
return found
"""


class RedisLog(QueuedLog):
    """See the module.

    Args:
        url: of the server.
        stream: name of the stream.
        max_waiting: entries that may wait for the server.

    Raises:
        ConfigError: the server does not flush every write, or the url is none.
        CommunicationError: it is not there.
    """

    def __init__(self, url: str, stream: str, max_waiting: int = 50_000) -> None:
        super().__init__(max_waiting)
        self._redis: Any = import_extra("redis", "redis")
        try:
            self._db = self._redis.Redis.from_url(
                url, health_check_interval=10, socket_timeout=ANSWERS_S,
                socket_connect_timeout=ANSWERS_S,
            )  # fmt: skip
        except ValueError:  # it may name parts of the password
            raise ConfigError(
                "log.url is no address of a Redis server",
                fix="redis://:PASSWORD@HOST:6379/0, with / in the password as %2F",
            ) from None
        self._names = [stream, f"{stream}:keys", f"{stream}:state"]
        with self._answers():
            settings = self._db.config_get("append*")
        if settings.get("appendonly") != "yes" or settings.get("appendfsync") != "always":
            raise ConfigError(
                f"the server at {_place_of(url)} does not flush every write before it answers",
                fix="start it with --appendonly yes --appendfsync always",
            )
        self.begin()

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except self._redis.RedisError as error:
            raise CommunicationError(
                f"the Redis server of the log: {error}", fix="start it, or look at log.url"
            ) from error

    def add(self, entries: list[Entry]) -> list[Receipt]:
        """Write entries; see `QueuedLog`."""
        receipts: list[Receipt] = []
        with self._answers():
            for start in range(0, len(entries), MAX_GROUP):
                receipts += self._add_group(entries[start : start + MAX_GROUP])
        return receipts

    def _add_group(self, entries: list[Entry]) -> list[Receipt]:
        for _ in range(100):  # others write at the same time; a known one makes a gap
            next_, newest = self._db.hmget(self._names[2], "next", "time")
            at, now = int(next_ or 0), max(time.time(), float(newest or 0))
            keys = [id_of(name) for name, _ in entries]
            known = self._db.hmget(self._names[1], keys) if keys else []
            args: list = [repr(now), struct.pack("<d", now)]
            seen: dict[bytes, int] = {}
            is_new = []
            for key, before, (_, content) in zip(keys, known, entries, strict=True):
                is_new.append(before is None and key not in seen)
                offset = at
                if is_new[-1]:
                    seen[key], at = at, at + 1
                args += [key, offset, content, checksum_of(offset, now, key, content)]
            found = self._db.eval(_ADD, 3, *self._names, *args)
            if not found or int(found[0]) >= 0:
                return [
                    self._receipt(int(offset), new, content)
                    for offset, new, (_, content) in zip(found, is_new, entries, strict=True)
                ]
        raise CommunicationError(
            "other writers were always faster", fix="let one service write to the stream"
        )

    def _receipt(self, offset: int, is_new: bool, content: bytes) -> Receipt:
        if is_new:
            return Receipt(offset)
        before = self.read(offset, 1)
        is_same = not before or before[0].offset != offset or before[0].content == content
        return Receipt(offset, is_new=False, is_same=is_same)

    def read(self, start: int, limit: int) -> list[Record]:
        """Return records; see `EventLog`."""
        with self._answers():
            found = self._db.xrange(self._names[0], min=f"{start + 1}-0", count=limit)
        records = []
        for name, fields in found:
            offset, moment = int(name.partition(b"-")[0]) - 1, struct.unpack("<d", fields[b"t"])[0]
            key, content = fields[b"k"], fields[b"c"]
            records.append(check(offset, moment, key, content, int(fields[b"s"])))
        return records

    def span(self) -> tuple[int, int]:
        """Return the first offset, and that of the next entry."""
        with self._answers():
            end = int(self._db.hget(self._names[2], "next") or 0)
        first = self.read(0, 1)
        return (first[0].offset if first else end), end

    def trim(self, before: int, older_than: float) -> int:
        """Forget records; see `EventLog`."""
        with self._answers():
            return self._trim(before, older_than)

    def _trim(self, before: int, older_than: float) -> int:
        first, end = self.span()
        cut, stop = first, min(before, end - 1)
        while cut < stop:
            found = self._db.xrange(self._names[0], min=f"{cut + 1}-0", count=MAX_GROUP)
            old = [
                fields[b"k"]
                for name, fields in found
                if struct.unpack("<d", fields[b"t"])[0] < older_than
                and int(name.partition(b"-")[0]) - 1 < stop
            ]
            if not old:
                break
            cut += len(old)
            with self._db.pipeline() as both:  # in one step, or an id would stay for ever
                both.hdel(self._names[1], *old)
                both.xtrim(self._names[0], minid=f"{cut + 1}-0", approximate=False)
                both.execute()
            if len(old) < len(found):
                break
        return cut - first

    def close(self) -> None:
        """Write what waits, and end."""
        self.end()
        self._db.close()


def _place_of(url: str) -> str:
    """Return host, port and number of an address: without its password."""
    return url.rpartition("//")[2].rpartition("@")[2].partition("?")[0]
