import threading

import pytest

from deepseek.recsys.online.event_log import Receipt
from deepseek.recsys.online.queued_log import QueuedLog


class Kept(QueuedLog):
    """Keeps entries in a list, when it may."""

    def __init__(self):
        super().__init__(100)
        self.entries, self.may, self.groups = [], threading.Event(), []
        self.begin()

    def add(self, entries):
        self.may.wait()
        self.groups.append(len(entries))
        if any(name == "bad" for name, _ in entries):
            raise OSError("the disk is full")
        self.entries += entries
        first = len(self.entries) - len(entries)
        return [Receipt(first + n) for n in range(len(entries))]

    def read(self, start, limit):
        return []

    def span(self):
        return 0, len(self.entries)

    def trim(self, before, older_than):
        return 0

    def close(self):
        self.may.set()
        self.end()


def test_what_waits_is_written_together_and_each_gets_its_own_receipts():
    log = Kept()
    waiting = [log.submit([(f"{n}", b""), (f"{n}+", b"")]) for n in range(5)]
    log.may.set()
    offsets = [[each.offset for each in done.result()] for done in waiting]
    assert offsets == [[2 * n, 2 * n + 1] for n in range(5)]
    assert len(log.groups) <= 2  # the first may have been taken before the others came
    log.close()


def test_one_who_does_not_wait_any_more_ends_nothing():
    log = Kept()
    first, second = log.submit([("a", b"")]), log.submit([("b", b"")])
    second.cancel()
    log.may.set()
    assert first.result()[0].offset == 0
    assert log.submit([("c", b"")]).result()[0].offset == 2  # what was handed over is written
    log.close()


def test_those_who_wait_hear_of_an_error_and_the_next_are_written():
    log = Kept()
    log.may.set()
    with pytest.raises(OSError, match="the disk is full"):
        log.submit([("bad", b"")]).result()
    assert log.submit([("good", b"")]).result()[0].offset == 0
    log.close()
