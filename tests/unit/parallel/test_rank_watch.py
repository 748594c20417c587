import threading

import pytest

from deepseek.parallel import watch as rank_watch
from deepseek.parallel.watch import GONE, Watch


class Store(dict):
    def set(self, key, value):
        self[key] = value

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key):
        return self[key].encode()


class Frozen(Store):
    def check(self, keys):
        threading.Event().wait()


class Gone(Store):
    def check(self, keys):
        raise RuntimeError("Connection reset by peer")


@pytest.fixture
def watch(request):
    made = Watch(
        1, 2, getattr(request, "param", Store)(), "run", groups={}, start_timeout_s=600.0,
        timeout_s=120.0,
    )  # fmt: skip
    yield made
    made.close()


@pytest.mark.parametrize("first", [0, 40])
def test_the_first_step_of_a_process_has_the_long_limit_also_in_a_resumed_run(watch, first):
    for phase in ("the data of the next batch", "forward and backward passes"):
        watch.mark(phase, first if phase.startswith("the data") else None)
        assert watch.limit_s == 600
    watch.mark("the data of the next batch", first + 1)
    assert watch.limit_s == 120


@pytest.mark.parametrize("phase", ["a checkpoint", "the end of the run"])
def test_what_is_written_may_take_long(watch, phase):
    watch.mark("the data of the next batch", 0)
    watch.mark("the data of the next batch", 1)
    watch.mark(phase)
    assert watch.limit_s == 600
    watch.mark("evaluation")
    assert watch.limit_s == 120


@pytest.mark.parametrize("watch", [Frozen, Gone], indirect=True)
def test_a_store_that_does_not_answer_is_said_to_be_gone(watch, monkeypatch):
    monkeypatch.setattr(rank_watch, "STALE_S", 0.05)
    assert watch.explain() == GONE
