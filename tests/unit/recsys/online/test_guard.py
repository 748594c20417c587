import math

import numpy as np
from tests.unit.recsys.online.conftest import make_rows, stream

from deepseek.config.validation import validate_settings
from deepseek.recsys.online.guard import (
    CAPPED,
    FLIPPED,
    LEARNT,
    MALFORMED,
    OUTLIER,
    Guard,
)
from deepseek.recsys.online.settings import GuardSettings


def make(**settings):
    return Guard(validate_settings(GuardSettings, {"window": 1000, **settings}))


def judge(guard, client, loss):
    """Let a guard judge a 1 of that loss: labels that are all alike agree with nothing."""
    return guard.judge(client, math.exp(-loss), 1)


def test_a_loud_client_is_capped_where_there_are_others():
    guard, draw = make(), np.random.default_rng(0)
    loud = [0, 0]
    for n in range(3000):
        if n >= 1000 and draw.random() < 0.7:
            verdict = judge(guard, "loud", 0.5)
            loud[verdict == CAPPED] += 1
        else:
            assert judge(guard, f"client {draw.integers(20)}", 0.5) == LEARNT
    assert loud[0] <= 0.1 * 3000
    assert loud[1] > 1000


def test_a_client_that_is_loud_from_the_first_event_on_gets_its_share_and_no_more():
    guard, draw = make(window=10_000), np.random.default_rng(0)
    learnt = {"loud": 0, "others": 0}
    for n in range(4000):
        client = "loud" if n % 2 else f"client {draw.integers(50)}"
        if judge(guard, client, 0.5) == LEARNT:
            learnt["loud" if n % 2 else "others"] += 1
        if n >= 400:
            assert learnt["loud"] < 0.15 * learnt["others"]
    assert learnt["others"] == 2000
    assert learnt["loud"] < 0.08 * 2000


def test_a_loud_client_has_twice_as_much_where_its_labels_go_with_the_predictions():
    learnt = []
    for agrees in (True, False):
        guard, draw = make(window=10_000), np.random.default_rng(0)
        verdicts = []
        for n in range(8000):
            prob = float(draw.uniform(0.1, 0.9))
            value = int(draw.random() < (prob if agrees or n % 2 == 0 else 0.5))
            client = "loud" if n % 2 else f"client {draw.integers(80)}"
            verdict = guard.judge(client, prob, value)
            verdicts += [verdict] if n % 2 else []
        assert set(verdicts) == {LEARNT, CAPPED}
        learnt.append(verdicts.count(LEARNT))
    assert learnt[0] > 1.6 * learnt[1]


def test_clients_that_are_alike_are_not_capped():
    for num_clients in (10, 13, 40):
        guard, draw = make(window=2000), np.random.default_rng(num_clients)
        for _ in range(3000):
            assert judge(guard, f"client {draw.integers(num_clients)}", 0.5) == LEARNT


def test_few_clients_have_no_limit():
    guard = make()
    assert {judge(guard, f"client {n % 9}", 0.5) for n in range(2000)} == {LEARNT}


def test_a_client_whose_labels_are_flipped_is_set_aside():
    guard, draw = make(window=4000), np.random.default_rng(0)
    verdicts = []
    for _ in range(4000):
        number = int(draw.integers(20))
        loss = 2.0 if number == 7 else 0.3
        verdict = judge(guard, f"client {number}", loss)
        verdicts += [verdict] if number == 7 else []
        assert number == 7 or verdict == LEARNT
    assert verdicts.count(FLIPPED) > len(verdicts) - 60


def test_a_client_whose_labels_go_against_the_predictions_is_set_aside():
    guard, draw = make(window=20_000), np.random.default_rng(0)
    verdicts, of_liar = {}, []
    for _ in range(12_000):
        number = int(draw.integers(20))
        prob = float(draw.uniform(0.15, 0.45))  # the losses of a liar are within the margin
        value = int(draw.random() < prob)
        if number == 7:
            value = 1 - value
            of_liar.append(guard.judge("client 7", prob, value))
        else:
            verdict = guard.judge(f"client {number}", prob, value)
            verdicts[verdict] = verdicts.get(verdict, 0) + 1
    assert list(verdicts) == [LEARNT]
    assert of_liar[-1] == FLIPPED
    assert of_liar.count(FLIPPED) > 50
    first, *others = guard.loudest()
    assert (first["client"], first["is_set_aside"]) == ("client 7", True)
    assert not any(each["is_set_aside"] for each in others)


def test_where_labels_say_nothing_of_predictions_nobody_is_set_aside():
    guard, draw = make(window=4000), np.random.default_rng(0)
    verdicts = {
        guard.judge(f"client {n % 20}", float(draw.uniform(0.3, 0.7)), int(draw.integers(2)))
        for n in range(4000)
    }
    assert verdicts == {LEARNT}


def test_outliers_are_set_aside_until_there_are_so_many_that_the_model_is_wrong():
    guard = make()
    for _ in range(1000):
        judge(guard, "a", 0.3)
    assert [judge(guard, "a", 9.0) for _ in range(240)] == [OUTLIER] * 240
    assert [judge(guard, "a", 9.0) for _ in range(100)][-1] == LEARNT


def test_a_restart_judges_as_before():
    draw = np.random.default_rng(0)
    events = [
        (f"client {draw.integers(15)}", float(draw.random()), int(draw.integers(2)))
        for _ in range(1500)
    ]
    whole = make(window=200)
    wanted = [whole.judge(*event) for event in events]
    first, second = make(window=200), make(window=200)
    found = [first.judge(*event) for event in events[:700]]
    second.load(*first.state())
    found += [second.judge(*event) for event in events[700:]]
    assert found == wanted
    assert second.state()[1] == whole.state()[1]
    assert second.loudest() == whole.loudest()


def test_counts_reach_the_learner(settings):
    from tests.unit.recsys.online.test_learner import ListLog

    from deepseek.recsys.online.learner import Cuts, Learner
    from deepseek.recsys.online.online_model import OnlineModel

    made = settings(guard={"window": 200})
    learner = Learner(OnlineModel.load(made.model), made)
    records = stream(
        make_rows(400), client=lambda n: "loud" if n % 2 and n > 100 else f"client {n % 40}"
    )
    for cut in Cuts(ListLog(records), 0, 32):
        learner.learn(cut)
    assert learner.guard.counts["capped"] > 50


def test_what_the_model_has_no_prediction_for_is_malformed_and_counts_for_nobody():
    guard = make()
    assert guard.judge("a", math.nan, 1) == MALFORMED
    assert guard.counts["malformed"] == 1
    assert guard.loudest() == []
    assert judge(guard, "a", 0.3) == LEARNT
