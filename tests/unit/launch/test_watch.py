import signal
import socket

import pytest

from deepseek.launch import watch
from deepseek.launch.endpoint import Endpoint
from deepseek.launch.watch import Place, Watch


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(watch, "CHECK_S", 0.0)
    monkeypatch.setattr(watch, "LOST_AFTER_S", 0.0)


@pytest.fixture
def closed():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return Endpoint("127.0.0.1", listening.getsockname()[1])


@pytest.fixture
def open_():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Endpoint("127.0.0.1", listening.getsockname()[1])


def test_meeting_point_that_does_not_answer_is_lost(closed):
    looking = Watch((closed,), Place(closed, 0, is_host=False))
    assert looking.look() is signal.SIGKILL
    assert looking.verdict == "lost"


def test_host_does_not_lose_its_own_meeting_point(closed):
    assert Watch((closed,), Place(closed, 0, is_host=True)).look() is None


def test_meeting_point_that_answers_is_kept(open_, closed):
    assert Watch((open_, closed), Place(open_, 0, is_host=False)).look() is None


def test_earlier_candidate_that_is_back_is_joined_and_a_later_one_is_not(open_, closed):
    looking = Watch((open_, closed), Place(closed, 1, is_host=True))
    assert looking.look() is signal.SIGTERM
    assert looking.verdict == "returned"
    assert Watch((closed, open_), Place(closed, 0, is_host=True)).look() is None


def test_verdict_is_given_once(closed):
    looking = Watch((closed,), Place(closed, 0, is_host=False))
    assert [looking.look(), looking.look()] == [signal.SIGKILL, None]
