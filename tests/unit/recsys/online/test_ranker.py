import numpy as np
import pytest
import torch
from tests.unit.recsys.online.conftest import make_rows, stream
from tests.unit.recsys.online.test_learner import ListLog

from deepseek.errors import DataError
from deepseek.recsys.online.learner import Cuts, Learner
from deepseek.recsys.online.learner_process import Publisher
from deepseek.recsys.online.online_model import OnlineModel
from deepseek.recsys.online.ranker import Ranker

CROSSES = {"keys": [["user_id"], ["user_id", "genre"]], "windows": ["1h"]}


def publish(made):
    """Learn something, publish it, and return the learner."""
    learner = Learner(OnlineModel.load(made.model), made)
    publisher = Publisher(learner, made)
    for cut in Cuts(ListLog(stream(make_rows(200))), 0, 32):
        learner.learn(cut)
    assert publisher.offer() == 1
    return learner


def test_a_version_steps_in_and_says_what_it_has_learnt(settings):
    made = settings()
    ranker = Ranker(made)
    before = ranker.rank({"user_id": "u1"}, [{"genre": g, "price": 1.0} for g in "abcd"], 0.0)
    assert (before.version, before.offset) == (0, 0)
    learner = publish(made)
    assert ranker.refresh()
    assert not ranker.refresh()
    after = ranker.rank({"user_id": "u1"}, [{"genre": g, "price": 1.0} for g in "abcd"], 0.0)
    assert (after.version, after.offset) == (1, learner.offset)
    rows = [{"user_id": "u1", "genre": g, "price": 1.0} for g in "abcd"]
    learner.model.engine.eval()
    wanted = learner.model.probs(learner.model.encode(rows))[:, 0]
    assert after.order == np.argsort(-wanted, kind="stable").tolist()
    assert after.probs["click"] == np.sort(wanted)[::-1].tolist()


def test_new_weights_are_those_of_a_model_that_is_loaded(settings):
    made = settings()
    learner, path = publish(made), "versions/000001/model.bin"
    model = OnlineModel.load(made.model)
    taken, loaded = model.with_weights(made.path / path), OnlineModel.load(made.path / path)
    first = model.engine.module.state_dict()
    for name, weight in loaded.engine.module.state_dict().items():
        assert torch.equal(weight, taken.engine.module.state_dict()[name])
    assert any(not torch.equal(first[n], w) for n, w in taken.engine.module.state_dict().items())
    assert taken.encoder is model.encoder
    batch = learner.model.encode(make_rows(20))
    assert np.array_equal(taken.probs(batch), loaded.probs(batch))


def test_columns_of_the_user_are_read_once_and_mean_the_same(settings):
    ranker = Ranker(settings(crosses=CROSSES))
    rows = [{"genre": g, "price": p} for g, p in zip("abcda", [1, None, 2.5, 3, 1], strict=True)]
    shared = ranker.rank({"user_id": "u3"}, rows, 10.0)
    own = ranker.rank({}, [{**row, "user_id": "u3"} for row in rows], 10.0)
    assert shared == own
    mixed = ranker.rank(
        {"user_id": "u3", "price": 1}, [{"genre": "a"}, {"genre": "a", "price": 9}], 0.0
    )
    apart = [
        ranker.rank({"user_id": "u3", "genre": "a", "price": price}, [{}], 0.0).probs["click"][0]
        for price in (1, 9)
    ]
    assert sorted(mixed.probs["click"]) == pytest.approx(sorted(apart), rel=1e-5)


def test_a_missing_column_is_named(settings):
    ranker = Ranker(settings())
    with pytest.raises(DataError, match="features lack price"):
        ranker.rank({"user_id": "u1"}, [{"genre": "a", "price": 1}, {"genre": "b"}], 0.0)
    with pytest.raises(DataError, match="features lack user_id"):
        ranker.rank({}, [{"genre": "a", "price": 1}], 0.0)


@pytest.mark.parametrize(
    ("price", "words"),
    [(10**400, "bits is too large"), (1e30, "prediction for candidate 1")],
    ids=["400 digits", "1e30"],
)
def test_a_number_too_large_is_refused(settings, price, words):
    ranker = Ranker(settings())
    rows = [{"genre": "a", "price": 1}, {"genre": "b", "price": price}]
    with pytest.raises(DataError, match=words):
        ranker.rank({"user_id": "u1"}, rows, 0.0)
