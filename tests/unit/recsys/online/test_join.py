import pytest
from tests.unit.recsys.online.conftest import kept

from deepseek.config.validation import validate_settings
from deepseek.recsys.online.event_log import Record
from deepseek.recsys.online.events import read_event
from deepseek.recsys.online.join import Join
from deepseek.recsys.online.settings import JoinSettings


def make(labels=("click",), **settings):
    given = {
        "click": {"event": "click", "window": "10s"},
        "buy": {"event": "buy", "window": "100s"},
    }
    content = {"labels": {name: given[name] for name in labels}, "late_for": "20s", **settings}
    return Join(validate_settings(JoinSettings, content), labels)


class Stream:
    """Feeds a join with events, one at a time."""

    def __init__(self, join):
        self.join, self.num_taken = join, 0

    def __call__(self, kind, key, time):
        record = Record(self.num_taken, time, kept(kind, key, features={"n": key}))
        self.num_taken += 1
        joined = self.join.take([read_event(record)])
        return [(e.shown.event.key, self.join.labels[e.label], e.value) for e in joined.examples]


def test_a_click_within_the_window_is_a_one_at_once():
    take = Stream(make())
    assert take("impression", "a", 0) == []
    assert take("click", "a", 9) == [("a", "click", 1)]
    assert take("tick", "", 60) == []


def test_no_click_is_a_zero_when_the_window_ends():
    take = Stream(make())
    take("impression", "a", 0)
    take("impression", "b", 1)
    assert take("tick", "", 9.9) == []
    assert take("tick", "", 11) == [("a", "click", 0), ("b", "click", 0)]


def test_a_late_click_corrects_what_was_learnt_or_is_dropped():
    for late, wanted in [("correct", [("a", "click", 1)]), ("drop", [])]:
        take = Stream(make(late=late))
        take("impression", "a", 0)
        assert take("tick", "", 11) == [("a", "click", 0)]
        assert take("click", "a", 29) == wanted
        assert take.join.counts["late"] == 1
        assert take("click", "a", 29) == []
        assert take.join.counts["repeated"] == 1


def test_a_click_that_is_too_late_belongs_to_nothing():
    take = Stream(make())
    take("impression", "a", 0)
    take("tick", "", 11)
    assert take("click", "a", 31) == []
    take("tick", "", 200)
    assert take.join.counts["unmatched"] == 1


def test_a_click_before_its_impression_waits_for_it():
    take = Stream(make(early_for="5s"))
    assert take("click", "a", 0) == []
    assert take("impression", "a", 4) == [("a", "click", 1)]
    assert take("click", "b", 10) == []
    assert take("impression", "b", 16) == []
    assert (take.join.counts["early"], take.join.counts["unmatched"]) == (2, 1)


def test_an_impression_counts_once():
    take = Stream(make())
    take("impression", "a", 0)
    take("impression", "a", 1)
    assert take("tick", "", 20) == [("a", "click", 0)]
    assert take.join.counts["repeated"] == 1


def test_labels_have_windows_of_their_own():
    take = Stream(make(("click", "buy")))
    take("impression", "a", 0)
    assert take("click", "a", 5) == [("a", "click", 1)]
    assert take("tick", "", 50) == []
    assert take("buy", "a", 60) == [("a", "buy", 1)]


@pytest.mark.parametrize("cut", range(1, 12))
def test_what_waits_goes_on_after_a_restart(cut):
    events = [
        ("impression", "a", 0), ("click", "b", 1), ("impression", "c", 2), ("click", "c", 3),
        ("impression", "b", 4), ("click", "d", 5), ("tick", "", 13), ("impression", "d", 14),
        ("click", "a", 15), ("impression", "e", 16), ("tick", "", 24.5), ("tick", "", 40),
    ]  # fmt: skip
    records = [
        Record(n, time, kept(kind, key, features={})) for n, (kind, key, time) in enumerate(events)
    ]

    def examples(join, part):
        found = join.take(map(read_event, part)).examples
        return [(e.shown.event.key, e.value) for e in found]

    whole = make()
    wanted = examples(whole, records)
    first, second = make(), make()
    found = examples(first, records[:cut])
    second.load(first.state(0), lambda offsets: {n: read_event(records[n]) for n in offsets})
    found += examples(second, records[cut:])
    assert found == wanted
    assert second.counts == whole.counts
    assert {n: a.tolist() for n, a in second.state(0).items()} == {
        n: a.tolist() for n, a in whole.state(0).items()
    }
