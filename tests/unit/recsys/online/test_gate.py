import copy
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.unit.recsys.online.conftest import make_rows, stream
from tests.unit.recsys.online.test_learner import ListLog

from deepseek.errors import ConfigError, DataError
from deepseek.recsys.online.gate import Gate, Holdout
from deepseek.recsys.online.learner import Cuts, Learner
from deepseek.recsys.online.learner_process import Publisher
from deepseek.recsys.online.measures import OnlineMeasures
from deepseek.recsys.online.online_model import TIME, OnlineModel, make_crosses
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


def take_weights(learner, other):
    """Let a learner have learnt what another has."""
    learner.model.engine.module.load_state_dict(other.model.engine.module.state_dict())
    learner.num_cuts += 1


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
    take_weights(learner, poisoned)
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
    take_weights(first, new(made))  # as untrained as in the beginning
    second = Publisher(first, made)
    assert second.offer() is None
    assert any("below that of the best version" in reason for reason in second.last.reasons)


def test_the_best_version_counts_after_it_was_pruned_and_the_service_restarted(settings, holdout):
    good, fair, bad = (new(settings()) for _ in range(3))
    learn(good, make_rows(900))
    learn(fair, make_rows(150))
    measuring = Holdout(holdout, bad.model, None)
    best, middle, worst = (measuring.measure(each.model)["auc"] for each in (good, fair, bad))
    assert best > middle > worst
    # from the best to the fair one it is less than may be, and from the fair to the worst one
    limits = {"max_auc_drop": best - (middle + worst) / 2, "max_loss_rise": 9.0}
    made = settings(gate={"holdout": holdout, **limits}, learner={"keep_versions": 2})
    publisher = Publisher(good, made)
    assert publisher.offer() == 1
    for version in (2, 3):
        take_weights(good, fair)
        assert publisher.offer() == version
    assert publisher.versions.numbers() == [2, 3]
    publisher = Publisher(good, made)
    take_weights(good, bad)
    assert publisher.offer() is None
    assert any("below that of the best version" in reason for reason in publisher.last.reasons)


def test_a_version_that_is_half_deleted_ends_no_learner(settings, holdout):
    made = settings(gate={"holdout": holdout})
    learner = new(made)
    learn(learner, make_rows(600))
    publisher = Publisher(learner, made)
    assert publisher.offer() == 1
    (
        publisher.versions.path(0)
    ).mkdir()  # as one that was deleted by an older release, until a kill
    take_weights(learner, new(made))
    again = Publisher(learner, made)
    assert again.offer() is None
    assert any("below that of the best version" in reason for reason in again.last.reasons)


def test_a_new_holdout_is_not_compared_with_the_auc_of_the_old_one(settings, holdout, tmp_path):
    learner = new(settings())
    learn(learner, make_rows(600))
    assert Publisher(learner, settings(gate={"holdout": holdout})).offer() == 1
    draw = random.Random(0)
    rows = [{**row, "click": draw.randrange(2)} for row in make_rows(400, seed=6)]
    (tmp_path / "harder.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = settings(gate={"holdout": str(tmp_path / "harder.jsonl"), "max_auc_drop": 0.1})
    publisher = Publisher(learner, made)
    assert publisher.offer() == 2, publisher.last.reasons
    assert publisher.last.metrics["holdout"]["auc"] < 0.6


def test_after_a_release_versions_are_compared_with_the_one_rolled_back_to(settings, holdout):
    made = settings(gate={"holdout": holdout, "max_auc_drop": 1.0})
    learner = new(made)
    publisher = Publisher(learner, made)
    assert publisher.offer() == 1
    learn(learner, make_rows(600))
    assert publisher.offer() == 2
    take_weights(learner, new(made))  # as good as version 1, and worse than 2
    assert publisher.offer() is None
    publisher.versions.roll_back(to=1)
    learner.num_cuts += 1
    assert publisher.offer() is None  # pinned
    assert publisher.last.passes
    publisher.versions.release()
    learner.num_cuts += 1
    assert publisher.offer() == 3


def test_a_restart_from_an_older_checkpoint_publishes_nothing_older(settings):
    made, records = settings(), stream(make_rows(300))
    log, learner = ListLog(records), new(settings())
    publisher = Publisher(learner, made, len(records))
    cuts = list(Cuts(log, 0, 32))
    for cut in cuts[:3]:
        learner.learn(cut)
    checkpoint = copy.deepcopy(learner.checkpoint())
    for cut in cuts[3:6]:
        learner.learn(cut)
    assert publisher.offer() == 1
    learner = new(made)
    learner.load(checkpoint, log)
    publisher = Publisher(learner, made, len(records))
    found = []
    for cut in cuts[3:]:
        offered = publisher.offer()
        found.append(publisher.versions.about(publisher.versions.current().version)["offset"])
        assert offered is None or found[-1] == learner.offset
        learner.learn(cut)
    assert found == sorted(found)
    assert found[0] == cuts[5][-1].offset + 1
    assert publisher.versions.current().version > 1
    emptied = new(made)  # the log was begun anew: no version is of it
    assert Publisher(emptied, made, 0).offer() is not None


def test_a_version_whose_loss_is_no_number_is_turned_down(settings, holdout):
    made = settings(gate={"holdout": holdout, "slices": ["genre"]})
    learner = new(made)
    publisher = Publisher(learner, made)
    assert publisher.offer() == 1
    with torch.no_grad():
        for weight in learner.model.engine.parameters():
            weight.fill_(1e30)  # finite, and its square is not
    learner.num_cuts += 1
    assert publisher.offer() is None
    assert publisher.last.reasons == ("hold-out log-loss is not a number",)
    json.dumps(publisher.last.metrics, allow_nan=False)


def test_a_holdout_on_which_the_first_model_has_no_loss_is_refused(settings, tmp_path):
    rows = make_rows(50)
    rows[3]["price"] = 1e30
    path = tmp_path / "large.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    made = settings(gate={"holdout": str(path)})
    with pytest.raises(ConfigError, match=r"large\.jsonl the log-loss of the model is not a num"):
        Publisher(new(made), made)


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
    large = ({**rows[0], "price": 1e30}, 0, 0, 0.5)  # the older one has no prediction for it
    assert not gate.judge(model, model, [*recent, large]).passes


def test_a_slice_must_be_a_column(settings, holdout):
    model = OnlineModel.load(settings().model)
    with pytest.raises(ConfigError, match=r"gate.slices: colour is no column"):
        Holdout(holdout, model, None, ["colour"])


def test_a_holdout_of_parts_with_other_types_is_read(settings, tmp_path):
    model = OnlineModel.load(settings().model)
    rows = make_rows(300)
    for place, row in enumerate(rows):
        row["price"] = [place % 7, place % 7 + 0.5, None][place // 100]
        row["genre"] = place % 7 if place < 100 else row["genre"]
    (tmp_path / "parts").mkdir()
    for number in range(3):
        part = rows[number * 100 : number * 100 + 100]
        text = "\n".join(map(json.dumps, part))
        (tmp_path / "parts" / f"{number}.jsonl").write_text(text)
    (tmp_path / "whole.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = Holdout(str(tmp_path / "parts"), model, None, ["genre", "price"], 20)
    whole = Holdout(str(tmp_path / "whole.jsonl"), model, None, ["genre", "price"], 20)
    assert parts.measure(model) == whole.measure(model)
    assert {"genre=a", "price="} < parts.measure(model)["slices"].keys()


def test_a_holdout_whose_parts_have_other_columns_is_refused(settings, tmp_path):
    for name, dropped in (("a", "none"), ("b", "genre")):
        rows = [{k: v for k, v in row.items() if k != dropped} for row in make_rows(50)]
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has no column 'genre'"):
        Holdout(str(tmp_path / "*.parquet"), OnlineModel.load(settings().model), None)


def test_a_slice_may_be_a_counter(settings, tmp_path):
    made = settings(crosses={"keys": [["user_id"]], "windows": ["all"]})
    rows = [{**row, TIME: n} for n, row in enumerate(make_rows(200))]
    (tmp_path / "timed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model, slices = OnlineModel.load(made.model), ["user_id.all.shown"]
    holdout = Holdout(str(tmp_path / "timed.jsonl"), model, make_crosses(made), slices, 15)
    assert {f"{slices[0]}={n}" for n in range(5)} <= holdout.measure(model)["slices"].keys()


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
