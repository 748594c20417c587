"""What a learner does while its log is away."""

import json
import os

from tests.unit.recsys.online.test_learner import ListLog

from deepseek.errors import CommunicationError
from deepseek.recsys.online import learner_process
from deepseek.recsys.online.learner_process import STATUS, run_learner


class AwayLog(ListLog):
    """Its server does not answer any more."""

    def read(self, start, limit):
        raise CommunicationError("the server is away", fix="start it")


def test_a_learner_that_waits_for_its_log_says_that_it_lives(settings, monkeypatch):
    made = settings()
    monkeypatch.setattr(learner_process, "AWAY_S", 0.0)
    monkeypatch.setattr(learner_process, "open_log", lambda settings, writes: AwayLog([]))
    status = made.path / STATUS
    looks = iter([False, False, True])
    run_learner(made, lambda: next(looks, True))  # it has said nothing yet
    assert not status.exists()
    status.write_text(json.dumps({"offset": 7}))
    os.utime(status, (0, 0))
    looks = iter([False, False, True])
    run_learner(made, lambda: next(looks, True))
    assert status.stat().st_mtime > 0
    assert json.loads(status.read_text()) == {"offset": 7}
