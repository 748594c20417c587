"""The log in Kafka, against the broker of librdkafka for tests: the protocol, in memory."""

import ctypes
import struct
import threading
import time
from pathlib import Path

import pytest

from deepseek.errors import ConfigError
from deepseek.recsys.online.event_log import LogDamagedError, id_of

kafka = pytest.importorskip("confluent_kafka", reason="pip install 'deepseek-framework[kafka]'")

from deepseek.recsys.online.kafka_log import KafkaLog  # noqa: E402

TOPIC = "events"


class Broker:
    """A broker of librdkafka: its client for Python can begin one, but make no topics in it."""

    def __init__(self):
        folder = Path(kafka.__file__).parents[1] / "confluent_kafka.libs"
        found = sorted(folder.glob("librdkafka-*.so*"))
        if not found:
            pytest.skip("no librdkafka beside confluent_kafka")
        self._lib = ctypes.CDLL(str(found[0]))
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._lib.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        conf = ctypes.c_void_p(self._lib.rd_kafka_conf_new())
        self._client = ctypes.c_void_p(self._lib.rd_kafka_new(0, conf, None, 0))
        self._cluster = ctypes.c_void_p(self._lib.rd_kafka_mock_cluster_new(self._client, 1))
        self.address = self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def make_topic(self, name, num_partitions):
        assert not self._lib.rd_kafka_mock_topic_create(
            self._cluster, name.encode(), num_partitions, 1
        )

    def close(self):
        self._lib.rd_kafka_mock_cluster_destroy(self._cluster)
        self._lib.rd_kafka_destroy(self._client)


@pytest.fixture
def servers():
    """Return the address of a broker with the topics `events` and `many`."""
    broker = Broker()
    broker.make_topic(TOPIC, 1)
    broker.make_topic("many", 3)
    yield broker.address
    broker.close()


def write(log, names):
    return log.submit([(name, f'{{"n":"{name}"}}'.encode()) for name in names]).result(60)


def contents(log, start=0):
    return [record.content.decode()[6:-2] for record in log.read(start, 10_000)]


def test_an_id_counts_once_and_gets_its_first_offset(servers):
    log = KafkaLog(servers, TOPIC)
    assert [receipt.offset for receipt in write(log, "abc")] == [0, 1, 2]
    again = write(log, "bdb")
    assert [receipt.offset for receipt in again] == [1, 3, 1]
    assert [receipt.is_new for receipt in again] == [False, True, False]
    assert log.submit([("a", b"{}")]).result(60)[0].is_same is False
    assert contents(log) == ["a", "b", "c", "d"]
    assert contents(log, 2) == ["c", "d"]
    assert [record.offset for record in log.read(1, 2)] == [1, 2]
    assert log.read(4, 10) == []
    assert log.span()[1] >= 4
    log.close()


def test_readers_and_writers_agree_on_what_came_first(servers):
    first, second = KafkaLog(servers, TOPIC), KafkaLog(servers, TOPIC)
    found = {}

    def client(log, number):
        for n in range(10):
            found[number, n] = write(log, [f"{n}"])[0].offset

    threads = [
        threading.Thread(target=client, args=(log, n)) for n, log in enumerate((first, second))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = KafkaLog(servers, TOPIC, writes=False)
    records = reader.read(0, 1000)
    assert sorted(int(each.content[6:-2]) for each in records) == list(range(10))
    for n in range(10):
        assert found[0, n] == found[1, n]
    assert {each.offset for each in records} == {found[0, n] for n in range(10)}
    for log in (first, second):
        assert log.read(0, 1000) == records
    for log in (first, second, reader):
        log.close()


def test_one_who_comes_later_knows_what_was_there(servers):
    log = KafkaLog(servers, TOPIC)
    write(log, "abc")
    log.close()
    log = KafkaLog(servers, TOPIC)
    assert [receipt.is_new for receipt in write(log, "cd")] == [False, True]
    times = [record.time for record in log.read(0, 10)]
    assert times == sorted(times)
    log.close()


def fill_up(log):
    """Write more than the 5 MiB that the broker keeps."""
    for n in range(7):
        log.submit([(f"large {n}", bytes(900_000))]).result(60)
    assert log.span()[0] > 0


def test_an_id_that_retention_has_removed_is_a_new_one_for_all_readers(servers):
    log, reader = KafkaLog(servers, TOPIC), KafkaLog(servers, TOPIC, writes=False)
    write(log, "a")
    fill_up(log)
    assert log.trim(0, 0.0) > 0  # as the process that answers does every minute
    (again,) = write(log, "a")
    assert again.is_new
    reader._wait_for(again.offset + 1)
    assert contents(reader, again.offset) == ["a"]
    assert contents(log, again.offset) == ["a"]
    log.close()
    reader.close()


def test_a_reader_forgets_ids_by_itself(servers, monkeypatch):
    monkeypatch.setattr("deepseek.recsys.online.kafka_log.TRIM_S", 0.0)
    log, reader = KafkaLog(servers, TOPIC), KafkaLog(servers, TOPIC, writes=False)
    write(log, "a")
    fill_up(log)
    deadline = time.monotonic() + 60
    while id_of("a") in reader._first:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    log.close()
    reader.close()


def test_what_another_has_written_is_refused(servers):
    log = KafkaLog(servers, TOPIC)
    write(log, "a")
    producer = kafka.Producer({"bootstrap.servers": servers})
    headers = [("t", struct.pack("<d", 1.0)), ("s", struct.pack("<q", 1))]
    producer.produce(TOPIC, b"{}", b"k" * 16, partition=0, headers=headers)
    producer.flush(10)
    log._wait_for(2)
    with pytest.raises(LogDamagedError, match="offset 1 does not match"):
        log.read(0, 10)
    log.close()


def test_a_topic_of_several_partitions_is_refused(servers):
    with pytest.raises(ConfigError, match="the topic many has 3 partitions, not 1"):
        KafkaLog(servers, "many")


def test_a_variable_that_is_not_there_is_named(servers):
    with pytest.raises(ConfigError, match=r"log.options.sasl.password=\$NO_SUCH_WORD"):
        KafkaLog(servers, TOPIC, options={"sasl.password": "$NO_SUCH_WORD"})
