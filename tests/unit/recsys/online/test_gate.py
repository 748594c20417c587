import json
import random

import pytest
import torch
from tests.unit.recsys.online.conftest import make_rows, stream
from tests.unit.recsys.online.test_learner import ListLog

from deepseek.errors import ConfigError
from deepseek.recsys.online.gate import Gate, Holdout
from deepseek.recsys.online.learner import Cuts, Learner
from deepseek.recsys.online.learner_process import Publisher
from deepseek.recsys.online.measures import OnlineMeasures
from deepseek.recsys.online.online_model import OnlineModel
from deepseek.recsys.online.recent import auc, drift, histogram, losses


@pytest.fixture
def holdout(tmp_path):
    path = tmp_path / "holdout.jsonl"
    path.write_text("\n".join(map(json.dumps, make_rows(400, seed=5))))
    return str(path)


def learn(learner, rows):
    for cut in Cuts(ListLog(stream(rows)), 0, 32):
        learner.learn(cut)


def new(settings):
    return Learner(OnlineModel.load(settings.model), settings)


def flipped(rows):
    return [{**row, "click": 1 - row["click"]} for row in rows]


def test_what_learns_well_is_published_and_what_is_poisoned_is_not(settings, holdout):
    made = settings(gate={"holdout": holdout, "slices": ["genre"]})
    learner = new(made)
    publisher = Publisher(learner, made)
    assert publisher.offer() == 1
    assert publisher.offer() is None  # nothing was learnt since
    learn(learner, make_rows(600))
    assert publisher.offer() == 2
    before = publisher.last.metrics["holdout"]["loss"]
    poisoned = new(made)
    learn(poisoned, flipped(make_rows(600)))
    learner.model.engine.module.load_state_dict(poisoned.model.engine.module.state_dict())
    learner.num_cuts += 1
    assert publisher.offer() is None
    assert publisher.num_refused == 1
    reasons = publisher.last.reasons
    assert any("hold-out log-loss is" in reason for reason in reasons)
    assert any("log-loss of genre=a" in reason for reason in reasons)
    assert publisher.last.metrics["holdout"]["loss"] > before
    assert publisher.versions.current().version == 2
    lines = (publisher.versions.folder / "gate.jsonl").read_text().splitlines()
    assert [bool(json.loads(line)["reasons"]) for line in lines] == [False, False, True]


def test_a_learner_that_is_fed_with_flipped_labels_publishes_nothing_more(settings, holdout):
    made = settings(gate={"holdout": holdout, "window": 500}, guard={"min_clients": 100})
    learner = new(made)
    publisher = Publisher(learner, made)
    learn(learner, make_rows(900))
    good = publisher.offer()
    best = publisher.last.metrics["holdout"]["auc"]
    draw = random.Random(0)
    poison = [{**row, "click": row["click"] ^ (draw.random() < 0.5)} for row in make_rows(2000, 7)]
    published = [good]
    for number, cut in enumerate(Cuts(ListLog(stream(poison)), 0, 32)):
        learner.learn(cut)
        if number % 5 == 4:
            published.append(publisher.offer() or published[-1])
    for version in published:
        found = publisher.versions.about(version)["metrics"]["holdout"]
        assert found["auc"] >= best - 0.01
    assert publisher.offer() is None
    assert "hold-out AUC is" in " ".join(publisher.last.reasons)
    assert publisher.last.metrics["holdout"]["auc"] < best - 0.02
    assert publisher.versions.current().version == published[-1]
    assert 0 < publisher.num_refused_since <= publisher.num_refused
    measures = OnlineMeasures()
    measures.take({"refused_since": publisher.num_refused_since})
    said = f"deepseek_online_refused_since {float(publisher.num_refused_since)}"
    assert said in measures.page().decode()


def test_a_restarted_service_holds_versions_to_the_best_that_was_published(settings, holdout):
    made = settings(gate={"holdout": holdout})
    first = new(made)
    learn(first, make_rows(600))
    assert Publisher(first, made).offer() == 1
    second = Publisher(new(made), made)  # as untrained as in the beginning
    assert second.offer() is None
    assert any("below that of the best version" in reason for reason in second.last.reasons)


def test_weights_that_are_not_finite_are_never_published(settings):
    made = settings()
    learner = new(made)
    publisher = Publisher(learner, made)
    publisher.offer()
    learn(learner, make_rows(100))
    with torch.no_grad():
        next(learner.model.engine.parameters()).view(-1)[0] = float("nan")
    assert publisher.offer() is None
    assert publisher.last.reasons == ("a weight is not finite",)


def test_what_is_recent_is_compared_with_the_version_that_answers(settings):
    made = settings(gate={"window": 500})
    model = OnlineModel.load(made.model)
    gate = Gate(made.gate, None, model)
    rows = make_rows(200)
    recent = [(row, 0, row["click"], 0.99 - 0.98 * row["click"]) for row in rows]
    verdict = gate.judge(OnlineModel.load(made.model), model, recent)
    assert not verdict.passes
    assert "recent log-loss is" in verdict.reasons[0]
    assert gate.judge(model, model, recent[:50]).passes  # too few to say anything


def test_a_slice_must_be_a_column(settings, holdout):
    model = OnlineModel.load(settings().model)
    with pytest.raises(ConfigError, match=r"gate.slices: colour is no column"):
        Holdout(holdout, model, None, ["colour"])


def test_metrics_agree_with_their_definitions():
    from sklearn.metrics import log_loss, roc_auc_score

    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(500, generator=generator) < 0.3).numpy()
    scores = (torch.randint(0, 40, (500,), generator=generator) / 40 + 0.001).numpy()
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert losses(scores, labels).mean() == pytest.approx(log_loss(labels, scores))
    assert drift(histogram(scores), histogram(scores)) == 0
    assert drift(histogram(scores), histogram(scores**4)) > 0.2


def test_a_model_that_learns_is_published_again_and_again(settings):
    made = settings(gate={"window": 500})
    learner = new(made)
    publisher = Publisher(learner, made)
    publisher.offer()
    sizes = []
    for number, cut in enumerate(Cuts(ListLog(stream(make_rows(900))), 0, 32)):
        learner.learn(cut)
        if number % 3 == 0:
            publisher.offer()
            sizes.append(publisher.last.metrics.get("recent", {}).get("examples", 0))
    assert publisher.num_refused == 0
    assert publisher.versions.current().version > 10
    assert 100 <= max(sizes) < 500
