import shutil
import signal
import threading
import time

import pytest
from tests.unit.recsys.online.redis_server import Server

from deepseek.errors import CommunicationError, ConfigError
from deepseek.recsys.online.event_log import LogDamagedError

redis = pytest.importorskip("redis", reason="pip install 'deepseek-framework[redis]'")
needs_server = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="no redis-server: apt-get install redis-server"
)

from deepseek.recsys.online.redis_log import ANSWERS_S, RedisLog  # noqa: E402


@pytest.fixture
def server(tmp_path):
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server: apt-get install redis-server")
    made = Server(tmp_path)
    yield made
    made.kill()


def write(log, names):
    return log.submit([(name, f'{{"n":"{name}"}}'.encode()) for name in names]).result()


def test_entries_are_kept_once_in_order(server):
    log = RedisLog(server.url, "events")
    assert [receipt.offset for receipt in write(log, "abc")] == [0, 1, 2]
    again = write(log, "bdbd")
    assert [receipt.offset for receipt in again] == [1, 3, 1, 3]
    assert [receipt.is_new for receipt in again] == [False, True, False, False]
    assert log.submit([("a", b"{}")]).result()[0].is_same is False
    assert log.span() == (0, 4)
    assert [record.content for record in log.read(2, 9)] == [b'{"n":"c"}', b'{"n":"d"}']
    assert log.trim(3, older_than=2e12) == 3
    assert log.span() == (3, 4)
    assert write(log, "e")[0].offset == 4
    log.close()


def test_a_server_that_is_killed_loses_nothing_that_was_acknowledged(server):
    acknowledged, ends = {}, threading.Event()

    def client(number):
        log, n = RedisLog(server.url, "events"), 0
        while not ends.is_set():
            name = f"{number}-{n}"
            try:
                acknowledged[name] = write(log, [name])[0].offset
                n += 1  # else the same id again
            except CommunicationError:
                time.sleep(0.02)
        log.close()

    threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.3)
        server.kill()
        server.start()
    ends.set()
    for thread in threads:
        thread.join()
    log = RedisLog(server.url, "events")
    records = log.read(0, 1_000_000)
    assert [record.offset for record in records] == list(range(len(records)))
    contents = [record.content for record in records]
    assert len(set(contents)) == len(contents)
    assert len(acknowledged) > 20
    for name, offset in acknowledged.items():
        assert contents[offset] == f'{{"n":"{name}"}}'.encode()
    log.close()


def test_a_changed_record_is_refused(server):
    log = RedisLog(server.url, "events")
    write(log, "a")
    with redis.Redis.from_url(server.url) as client:
        (_, fields), *_ = client.xrange("events")
        client.xadd("events", {**fields, b"c": b"other"}, id="2-0")
    with pytest.raises(LogDamagedError, match="offset 1 does not match"):
        log.read(0, 10)
    log.close()


class Killed(BaseException):
    """As a signal that ends the process."""


@pytest.mark.parametrize("num_sent", range(9))
def test_a_trim_that_is_cut_off_leaves_no_ids(server, monkeypatch, num_sent):
    monkeypatch.setattr("deepseek.recsys.online.redis_log.MAX_GROUP", 2)
    log = RedisLog(server.url, "events")
    write(log, "abcdefgh")
    sent, send = [], redis.connection.Connection.send_packed_command

    def cut_off(connection, command, check_health=True):
        if len(sent) == num_sent:
            raise Killed
        sent.append(command)
        send(connection, command, check_health)

    with monkeypatch.context() as patch:
        patch.setattr(redis.connection.Connection, "send_packed_command", cut_off)
        with pytest.raises(Killed):
            log.trim(7, older_than=2e12)
    with redis.Redis.from_url(server.url) as client:
        assert client.hlen("events:keys") == client.xlen("events") == 8 - log.span()[0]
        log.trim(7, older_than=2e12)
        assert client.hvals("events:keys") == [b"7"]
    log.close()


def test_a_server_that_is_frozen_does_not_answer(server):
    log = RedisLog(server.url, "events")
    pool = log._db.connection_pool
    assert pool.connection_kwargs["socket_timeout"] == ANSWERS_S
    pool.connection_kwargs["socket_timeout"] = 0.05
    pool.disconnect()
    server.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(CommunicationError, match="the Redis server of the log"):
            log.read(0, 10)
    finally:
        server.process.send_signal(signal.SIGCONT)
    log.close()
    patient = RedisLog(f"{server.url}?socket_timeout=77", "events")
    assert patient._db.connection_pool.connection_kwargs["socket_timeout"] == 77
    patient.close()


@needs_server
def test_a_server_that_does_not_flush_is_refused(tmp_path):
    server = Server(tmp_path, fsync="everysec")
    try:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", "secret")
        place = f"127.0.0.1:{server.port}/0"
        for url in (f"redis://:secret@{place}", f"redis://{place}?password=secret"):
            with pytest.raises(ConfigError, match="does not flush every write") as caught:
                RedisLog(url, "events")
            assert place in str(caught.value)
            assert "secret" not in str(caught.value)
    finally:
        server.kill()


def test_an_address_that_is_none_is_refused_without_its_password():
    with pytest.raises(ConfigError, match="no address of a Redis server") as caught:
        RedisLog("redis://:sec/ret@127.0.0.1:1/0", "events")
    assert "sec" not in caught.value.message
