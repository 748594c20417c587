"""A replay beside a learner that is at work."""

import pytest
from tests.unit.recsys.online.conftest import make_rows, stream

from deepseek.checkpoint import CheckpointStore
from deepseek.errors import CheckpointError
from deepseek.recsys.online.learner import Cuts, Learner
from deepseek.recsys.online.online_model import OnlineModel
from deepseek.recsys.online.replay import replay
from deepseek.recsys.online.sqlite_log import SqliteLog


@pytest.fixture
def learnt(settings):
    """Settings of a service that has learnt, with two checkpoints."""
    made = settings()
    log = SqliteLog(made.path / "log" / "events.db")
    contents = [record.content for record in stream(make_rows(60))]
    log.submit([(f"e{number}", each) for number, each in enumerate(contents)]).result()
    learner = Learner(OnlineModel.load(made.model), made)
    store = CheckpointStore(made.path / "checkpoints")
    for cut in Cuts(log, 0, made.learner.cut_events):
        learner.learn(cut)
        store.save(learner.checkpoint())
    log.close()
    return made, learner, store


def names(store):
    return sorted(each.name for each in store.folder.iterdir())


def test_a_replay_leaves_the_save_of_a_running_learner(learnt):
    made, learner, store = learnt
    unfinished = store.folder / f".writing_{learner.offset + 1}"
    unfinished.mkdir()
    before = names(store)
    found = replay(made)
    assert (found.at_checkpoint, found.is_equal) == (learner.offset, True)
    assert names(store) == before


def test_a_replay_compares_with_the_newest_whole_checkpoint(learnt):
    made, _, store = learnt
    newest, older = store.steps()
    (newest / "manifest.json").unlink()
    before = names(store)
    found = replay(made)
    assert older.name == f"step_{found.at_checkpoint}"
    assert found.is_equal
    assert names(store) == before
    (older / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="checkpoints holds no whole checkpoint"):
        replay(made)
