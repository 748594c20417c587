import resource
import shutil
import sqlite3
import threading

import pytest

from deepseek.errors import ConfigError
from deepseek.recsys.online.event_log import LogDamagedError, LogFullError
from deepseek.recsys.online.sqlite_log import SqliteLog, salvage


def write(log, names):
    return log.submit([(name, f'{{"n":"{name}"}}'.encode()) for name in names]).result()


def contents(log):
    return [record.content for record in log.read(0, 10_000)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log" / "events.db"


def test_entries_get_offsets_in_order_and_are_read_back(path):
    log = SqliteLog(path)
    assert [receipt.offset for receipt in write(log, "abc")] == [0, 1, 2]
    assert log.span() == (0, 3)
    reader = SqliteLog(path, writes=False)
    write(log, "d")
    records = reader.read(1, 2)
    assert [(r.offset, r.content) for r in records] == [(1, b'{"n":"b"}'), (2, b'{"n":"c"}')]
    assert records[0].time <= records[1].time
    reader.close()
    log.close()
    log = SqliteLog(path)
    assert [receipt.offset for receipt in write(log, "e")] == [4]
    log.close()


def test_an_entry_that_comes_twice_gets_the_first_answer_and_is_kept_once(path):
    log = SqliteLog(path)
    write(log, "ab")
    again = write(log, "bcb")
    assert [receipt.offset for receipt in again] == [1, 2, 1]
    assert [receipt.is_new for receipt in again] == [False, True, False]
    other = log.submit([("a", b"{}")]).result()[0]
    assert (other.offset, other.is_new, other.is_same) == (0, False, False)
    assert len(contents(log)) == 3
    log.close()


def test_many_writers_share_flushes_and_lose_nothing(path):
    log = SqliteLog(path)
    found = {}

    def client(number):
        for n in range(40):
            found[number, n] = write(log, [f"{number}-{n}"])[0].offset

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found.values()) == list(range(320))
    by_offset = {record.offset: record.content for record in log.read(0, 1000)}
    for (number, n), offset in found.items():
        assert by_offset[offset] == f'{{"n":"{number}-{n}"}}'.encode()
    log.close()


def test_a_second_writer_waits_a_while_and_is_refused(path, monkeypatch):
    monkeypatch.setattr("deepseek.recsys.online.single_writer.LETS_GO_S", 0.1)
    log = SqliteLog(path)
    with pytest.raises(ConfigError, match="another process"):
        SqliteLog(path)
    log.close()


def test_too_many_waiting_entries_are_refused(path):
    log = SqliteLog(path, max_waiting=2)
    with pytest.raises(LogFullError, match="0 events wait to be written, the limit is 2"):
        log.submit([(name, b"{}") for name in "abc"])
    write(log, "ab")
    log.close()


def test_what_is_old_and_learnt_is_forgotten_but_the_newest(path):
    log = SqliteLog(path)
    write(log, "abcd")
    assert log.trim(2, older_than=0) == 0
    assert log.trim(2, older_than=2e12) == 2
    assert log.trim(100, older_than=2e12) == 1
    assert log.span() == (3, 4)
    log.close()
    log = SqliteLog(path)
    assert write(log, "e")[0].offset == 4
    log.close()


def crashed_copy(path, to, wal_bytes, mark):
    """Copy an open log as a crash leaves it: the journal only up to some byte."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    shutil.copy(path, to / path.name)
    wal = path.with_name(path.name + "-wal").read_bytes()
    (to / f"{path.name}-wal").write_bytes(wal[:wal_bytes])
    (to / "events.mark").write_bytes(mark)
    return to / path.name


def torn_cases(path):
    log = SqliteLog(path, page_bytes=512)
    wal = path.with_name("events.db-wal")
    ends = []
    for name in "abcdefg":
        write(log, [name])
        ends.append(wal.stat().st_size)
        if name == "d":
            mark = path.with_name("events.mark").read_bytes()
    return log, ends, mark


@pytest.mark.parametrize(
    "step", [pytest.param(97, id="some"), pytest.param(1, id="all", marks=pytest.mark.long)]
)
def test_a_torn_tail_is_cut_at_every_byte_of_the_last_records(path, tmp_path, step):
    log, ends, mark = torn_cases(path)
    begin, last = ends[3], ends[-1]
    assert begin < last
    near = {end + more for end in ends[3:] for more in (-1, 0, 1)}
    sizes = sorted(near | set(range(begin, last + 1, step)))
    for size in (each for each in sizes if begin <= each <= last):
        torn = SqliteLog(crashed_copy(path, tmp_path / "torn", size, mark))
        whole = sum(end <= size for end in ends)
        assert contents(torn) == [f'{{"n":"{name}"}}'.encode() for name in "abcdefg"[:whole]]
        assert write(torn, "z")[0].offset == whole
        torn.close()
    log.close()


def test_a_tail_that_was_acknowledged_and_is_gone_is_refused(path, tmp_path):
    log, ends, _ = torn_cases(path)
    mark = path.with_name("events.mark").read_bytes()
    torn = crashed_copy(path, tmp_path / "torn", ends[-1] - 1, mark)
    log.close()
    with pytest.raises(LogDamagedError, match="ends at offset 6, and events up to 7 were ack"):
        SqliteLog(torn)
    assert (torn.parent / "damaged-1" / "events.db").exists()


def fill(path, count=400):
    log = SqliteLog(path)
    write(log, [f"event {n}" for n in range(count)])
    log.close()


def test_a_changed_record_is_refused_set_aside_and_salvaged(path):
    fill(path)
    db = sqlite3.connect(path)
    db.execute("""UPDATE events SET content = '{"n":"other"}' WHERE offset = 200""")
    db.commit()
    db.close()
    with pytest.raises(LogDamagedError, match="offset 200 does not match its checksum"):
        SqliteLog(path)
    assert not path.exists()
    with pytest.raises(LogDamagedError, match="was set aside before"):
        SqliteLog(path)
    assert salvage(path) == (399, 1)
    log = SqliteLog(path)
    assert log.span() == (0, 400)
    assert log.read(200, 1)[0].content == b'{"kind":"lost"}'
    assert log.read(201, 1)[0].content == b'{"n":"event 201"}'
    assert write(log, ["event 7"])[0].offset == 7
    log.close()


def test_a_missing_record_is_refused(path):
    fill(path)
    db = sqlite3.connect(path)
    db.execute("DELETE FROM events WHERE offset = 77")
    db.commit()
    db.close()
    with pytest.raises(LogDamagedError, match="from offset 77 to 78 are missing"):
        SqliteLog(path)


def spoil_a_page(path, find):
    """Fill a log, overwrite the page of the byte that `find` tells, and see it refused."""
    fill(path, 2000)
    content = bytearray(path.read_bytes())
    page = find(content) // 4096 * 4096
    content[page : page + 4096] = bytes(range(256)) * 16
    path.write_bytes(content)
    with pytest.raises(LogDamagedError, match="its files are in"):
        SqliteLog(path)


@pytest.mark.parametrize("event", [0, 1999], ids=["first", "last"])
def test_noise_in_the_first_or_last_page_of_records_leaves_the_others(path, event):
    spoil_a_page(path, lambda content: content.index(f'"event {event}"'.encode()))
    kept, _ = salvage(path)
    assert kept > 1900
    log = SqliteLog(path)
    first, end = log.span()
    assert end == 2000
    assert log.read(1000, 1)[0].content == b'{"n":"event 1000"}'
    assert (first > 0) == (event == 0)  # whether there were any before is not known
    log.close()


def test_a_log_of_which_nothing_can_be_read_is_left_as_it_is(path):
    fill(path)
    path.write_bytes(bytes(range(256)) * 400)
    with pytest.raises(LogDamagedError, match="its files are in"):
        SqliteLog(path)
    with pytest.raises(LogDamagedError, match=r"no record of .*damaged-1/events\.db can be read"):
        salvage(path)
    assert not path.exists()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_page_of_noise_is_refused_and_the_rest_salvaged(path, share):
    spoil_a_page(path, lambda content: int(len(content) * share))
    kept, lost = salvage(path)
    assert kept > 0
    assert kept + lost == 2000
    log = SqliteLog(path)
    assert log.span() == (0, 2000)
    log.close()


def test_a_full_disk_sets_no_log_aside(path):
    fill(path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"events\.db cannot be opened: "):
            SqliteLog(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("damaged-*"))
    log = SqliteLog(path)
    assert log.span() == (0, 400)
    log.close()


def test_a_log_that_another_program_locks_is_not_set_aside(path, monkeypatch):
    monkeypatch.setattr("deepseek.recsys.online.sqlite_log.BUSY_MS", 1)
    fill(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConfigError, match="cannot be opened: database is locked"):
        SqliteLog(path)
    other.close()
    log = SqliteLog(path)
    assert log.span() == (0, 400)
    log.close()


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%20b", "ä b"])
def test_a_log_is_in_its_folder_whatever_that_is_called(tmp_path, name):
    path = tmp_path / name / "events.db"
    log = SqliteLog(path)
    write(log, "a")
    reader = SqliteLog(path, writes=False)
    assert contents(reader) == [b'{"n":"a"}']
    reader.close()
    log.close()
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert {each.name for each in path.parent.iterdir()} == {
        "events.db", "events.lock", "events.mark",
    }  # fmt: skip
