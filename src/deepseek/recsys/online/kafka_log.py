"""The log of events in a Kafka topic of one partition, for more than one machine.

Kafka numbers what it takes and knows no ids of ours: an entry that is sent twice is in the topic
twice. The first is the one that counts, for every reader alike, so each of them reads the whole
topic once and notes where an id came first; an entry is acknowledged when its own is read back. So
offsets are Kafka's, with gaps where something came again. An id that comes again when retention has
removed its first is a new one.

Departures from the other logs: ids are in memory (reckoned at 250 bytes each); what is old is
forgotten by the topic's own `retention.ms`; times of several writers may differ by what their
clocks do; and what is acknowledged is with all replicas that are in sync, not necessarily on a
disk: a topic of less than two replicas is warned of.
"""

import logging
import os
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import xxhash

from deepseek.errors import CommunicationError, ConfigError
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
from deepseek.registry import import_extra

LOG = logging.getLogger("deepseek.online")
TIMEOUT_S = 30.0
WAIT_S = 0.05
AT_ONCE = 4096
TRIM_S = 60.0


class KafkaLog(QueuedLog):
    """See the module.

    Args:
        servers: to begin with: `host:9092`, several with commas between them.
        topic: name; it is there, with one partition.
        writes: whether entries are added.
        max_waiting: entries that may wait for the servers.
        options: of librdkafka, such as `security.protocol`; `$NAME` stands for an environment
            variable.

    Raises:
        ConfigError: the topic is none of one partition.
        CommunicationError: the servers are not there.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        *,
        writes: bool = True,
        max_waiting: int = 50_000,
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(max_waiting)
        self._kafka: Any = import_extra("confluent_kafka", "kafka")
        self._topic = topic
        self._options = {"bootstrap.servers": servers, **_expanded(options or {})}
        # librdkafka's own words come through our exceptions
        self._options["log_level"] = "0"
        self._first: dict[bytes, tuple[int, int]] = {}
        """Id -> where it came first, and a hash of its content."""
        self._end, self._newest = 0, 0.0
        self._read_to = threading.Condition()
        self._ends, self._failure = False, None
        self._seeking = threading.Lock()
        self._reader, self._follower = self._consumer(), self._consumer()
        self._check_topic(servers)
        self._place = -1
        low, high = self._watermarks()
        self._end = low
        self._assign(self._follower, low)
        self._following = threading.Thread(target=self._follow, name="kafka", daemon=True)
        self._following.start()
        self._wait_for(high)
        self._producer: Any = None
        if writes:
            settings = {"acks": "all", "enable.idempotence": True, "linger.ms": 2}
            self._producer = self._kafka.Producer({**self._options, **settings})
            self.begin()

    def _consumer(self) -> Any:
        return self._kafka.Consumer(
            {
                **self._options,
                "group.id": "deepseek",  # asked for, and not used: places are ours
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 10,
            }
        )

    def _check_topic(self, servers: str) -> None:
        try:
            found = self._reader.list_topics(self._topic, timeout=TIMEOUT_S).topics[self._topic]
        except self._kafka.KafkaException as error:
            raise CommunicationError(
                f"log.url={servers}: {error}", fix="start the servers first"
            ) from error
        if found.error is not None or len(found.partitions) != 1:
            raise ConfigError(
                f"the topic {self._topic} has {len(found.partitions)} partitions, not 1:"
                " what is learnt depends on one order",
                fix=f"kafka-topics.sh --create --topic {self._topic} --partitions 1"
                " --replication-factor 3 --config min.insync.replicas=2",
            )
        if len(found.partitions[0].replicas) < 2:
            LOG.warning("the topic %s has one replica: what is lost there is lost", self._topic)

    def _partition(self, offset: int = 0) -> Any:
        return self._kafka.TopicPartition(self._topic, 0, offset)

    def _watermarks(self) -> tuple[int, int]:
        try:
            found = self._reader.get_watermark_offsets(self._partition(), timeout=TIMEOUT_S)
        except self._kafka.KafkaException as error:
            raise CommunicationError(f"Kafka: {error}", fix="look at its servers") from error
        if found is None:
            raise CommunicationError(
                f"Kafka: no answer in {TIMEOUT_S:g} s", fix="look at its servers"
            )
        return found

    def _assign(self, consumer: Any, offset: int) -> None:
        consumer.assign([self._partition(offset)])

    # -- following ---------------------------------------------------------------------------

    def _follow(self) -> None:
        """Read the topic to its end, and on, and note where ids came first."""
        trimmed_at = time.monotonic()
        while not self._ends:
            try:
                messages = self._follower.consume(AT_ONCE, timeout=WAIT_S)
                low = self._low_for(messages)
                with self._read_to:
                    for message in messages:
                        self._note(message, low)
                    self._read_to.notify_all()
                if time.monotonic() >= trimmed_at + TRIM_S:
                    with suppress(CommunicationError):
                        self.trim(0, 0.0)
                    trimmed_at = time.monotonic()
            except Exception as error:  # whoever waits must hear of it
                with self._read_to:
                    self._failure = error
                    self._read_to.notify_all()
                return

    def _low_for(self, messages: list) -> int:
        """Return the first offset of the topic, where one of these has an id that is known."""
        if any(each.error() is None and each.key() in self._first for each in messages):
            with suppress(CommunicationError):
                return self.span()[0]
        return 0

    def _note(self, message: Any, low: int) -> None:
        error = message.error()
        if error is not None:  # most say that a server is away, which librdkafka tries again
            if error.fatal() or error.code() == self._kafka.KafkaError._AUTO_OFFSET_RESET:
                raise CommunicationError(f"Kafka: {error}", fix="look at its servers")
            return
        key, content = message.key(), message.value()
        if key not in self._first or self._first[key][0] < low:  # retention has removed that one
            self._first[key] = message.offset(), xxhash.xxh3_64_intdigest(content)
        self._end = message.offset() + 1
        self._newest = max(self._newest, _fields(message)[0])

    def _wait_for(self, end: int) -> None:
        """Wait until all before an offset was read.

        Raises:
            CommunicationError: it does not come.
        """
        with self._read_to:
            came, before = False, -1
            while not came and before < self._end:  # it goes on, be there ever so much
                before = self._end
                came = self._read_to.wait_for(
                    lambda: self._end >= end or self._failure is not None, TIMEOUT_S
                )
        if self._failure is not None:
            raise CommunicationError(
                f"the topic {self._topic} cannot be followed: {self._failure}",
                fix="look at the servers, and start the service again",
            ) from self._failure
        if not came:
            raise CommunicationError(
                f"what was written up to offset {end} was not read back in {TIMEOUT_S:g} s",
                fix="look at the servers; send the events again",
            )

    # -- writing -----------------------------------------------------------------------------

    def add(self, entries: list[Entry]) -> list[Receipt]:
        """Write entries, those whose id is known left out; see `QueuedLog`."""
        keys = [id_of(name) for name, _ in entries]
        written: dict[int, int] = {}
        failures: list[object] = []
        with self._read_to:
            now = max(time.time(), self._newest)
            new = [n for n, key in enumerate(keys) if key not in self._first]
            known = {key: self._first[key] for key in keys if key in self._first}
        for n in new:
            key, content = keys[n], entries[n][1]
            checksum = checksum_of(0, now, key, content)
            headers = [("t", struct.pack("<d", now)), ("s", struct.pack("<q", checksum))]
            self._producer.produce(
                self._topic, content, key, partition=0, headers=headers,
                on_delivery=partial(_note_delivery, n, written, failures),
            )  # fmt: skip
        self._producer.flush(TIMEOUT_S)
        if failures or len(written) < len(new):
            reason = failures[0] if failures else f"no answer in {TIMEOUT_S:g} s"
            raise CommunicationError(f"Kafka did not take events: {reason}", fix="send them again")
        self._wait_for(max(written.values(), default=-1) + 1)
        receipts = []
        with self._read_to:
            for n, (key, (_, content)) in enumerate(zip(keys, entries, strict=True)):
                offset, digest = self._first[key] if key in self._first else known[key]
                is_same = digest == xxhash.xxh3_64_intdigest(content)
                receipts.append(Receipt(offset, written.get(n) == offset, is_same))
        return receipts

    # -- reading -----------------------------------------------------------------------------

    def read(self, start: int, limit: int) -> list[Record]:
        """Return records; see `EventLog`."""
        with self._read_to:
            end = self._end
        records: list[Record] = []
        with self._seeking:
            start = max(start, self._watermarks()[0]) if start != self._place else start
            if start >= end:
                return []
            if start != self._place:
                self._assign(self._reader, start)
            self._place, deadline = start, time.monotonic() + TIMEOUT_S
            while self._place < end and len(records) < limit:
                for message in self._reader.consume(limit - len(records), timeout=WAIT_S):
                    if message.error() is None and message.offset() < end:
                        records += self._record(message)
                        self._place = message.offset() + 1
                    elif message.error() is None:
                        deadline = 0.0  # behind what was followed: to be read again
                if time.monotonic() > deadline:
                    break
            if deadline == 0.0:
                self._place = -1
        return records

    def _record(self, message: Any) -> list[Record]:
        """Return a record, or nothing where its id came before."""
        key, content, offset = message.key(), message.value(), message.offset()
        with self._read_to:
            if self._first.get(key, (offset,))[0] != offset:
                return []
        moment, checksum = _fields(message)
        try:
            check(0, moment, key, content, checksum)
        except LogDamagedError:
            raise LogDamagedError(
                f"the record at offset {offset} does not match its checksum",
                fix="let nobody else write to the topic",
            ) from None
        return [Record(offset, moment, content)]

    def span(self) -> tuple[int, int]:
        """Return the first offset, and that of the next entry."""
        with self._seeking:
            low = self._watermarks()[0]
        with self._read_to:
            return low, max(low, self._end)

    def trim(self, before: int, older_than: float) -> int:
        """Forget ids of what Kafka has forgotten, by the retention of its topic."""
        del before, older_than
        low, _ = self.span()
        with self._read_to:
            old = [key for key, (offset, _) in self._first.items() if offset < low]
            for key in old:
                del self._first[key]
        return len(old)

    def close(self) -> None:
        """Write what waits, and end."""
        self.end()
        self._ends = True
        self._following.join()
        self._follower.close()
        self._reader.close()


def _fields(message: Any) -> tuple[float, int]:
    """Return time and checksum of a message.

    Raises:
        LogDamagedError: it is none of ours.
    """
    headers = dict(message.headers() or ())
    try:
        return struct.unpack("<d", headers["t"])[0], struct.unpack("<q", headers["s"])[0]
    except (KeyError, struct.error) as error:
        raise LogDamagedError(
            f"the record at offset {message.offset()} was not written by this service",
            fix="let nobody else write to the topic",
        ) from error


def _note_delivery(
    number: int, written: dict[int, int], failures: list[object], error: object, message: Any
) -> None:
    if error is None:
        written[number] = message.offset()
    else:
        failures.append(error)


def _expanded(options: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, value in options.items():
        if value.startswith("$"):
            if value[1:] not in os.environ:
                raise ConfigError(
                    f"log.options.{name}={value}, and there is no such variable",
                    fix=f"export {value[1:]}=...",
                )
            value = os.environ[value[1:]]
        found[name] = value
    return found
