"""ExecuTorch: what it does to the process around it."""

import os
from threading import Event, Thread

import pytest

from deepseek.deploy.runtimes.executorch import _without_stderr


@pytest.fixture
def stderr():
    """The identity of what stderr goes to; it goes there again after the test."""
    kept = os.dup(2)
    yield os.fstat(kept).st_ino
    os.dup2(kept, 2)
    os.close(kept)


def test_stderr_is_back_after_two_models_were_opened_at_once(stderr):
    is_inside, first_is_out = Event(), Event()

    def second():
        with _without_stderr():
            is_inside.set()
            first_is_out.wait(10)

    thread = Thread(target=second)
    with _without_stderr():
        assert os.fstat(2).st_ino != stderr
        thread.start()
        assert not is_inside.wait(0.2)
    first_is_out.set()
    thread.join(10)
    assert is_inside.is_set()
    assert os.fstat(2).st_ino == stderr
