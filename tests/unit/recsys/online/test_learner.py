import numpy as np
import pytest
import torch
from tests.unit.recsys.online.conftest import columns_of, make_rows, save_model, stream

from deepseek.checkpoint import CheckpointStore
from deepseek.datasets import ColumnSource, InteractionDataset, infer_features
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import Embedder, ModelEngine, TableModel
from deepseek.models.eval_mode import evaluating
from deepseek.recsys import DeepFM, FactorizationMachine, RealTimeCrosses
from deepseek.recsys.online.event_log import EventLog
from deepseek.recsys.online.learner import Cuts, Learner, weights_hash
from deepseek.recsys.online.online_model import OnlineModel
from deepseek.recsys.tables import AdaGrad, GrowingEmbedding

CROSSES = {"keys": [["user_id"], ["user_id", "genre"]], "windows": ["1h", "all"]}


class ListLog(EventLog):
    """Records in memory."""

    def __init__(self, records):
        self.records = records

    def submit(self, entries):
        raise NotImplementedError

    def read(self, start, limit):
        return self.records[start : start + limit]

    def span(self):
        return 0, len(self.records)

    def trim(self, before, older_than):
        raise NotImplementedError

    def close(self):
        pass


@pytest.fixture
def crossed_model(tmp_path):
    """A model of columns and of counters."""
    torch.manual_seed(0)
    rows = [{**row, "time": n} for n, row in enumerate(make_rows(300))]
    crosses = RealTimeCrosses(CROSSES["keys"], windows=CROSSES["windows"])
    columns = columns_of(rows)
    spec = infer_features(ColumnSource(columns), labels="click", ignore=["time"])
    spec = spec.updated("dense", **crosses.features())
    data = InteractionDataset({**columns, **crosses.replay(columns)}, spec, cache="off")
    engine = ModelEngine.wrap(FactorizationMachine(embedding_dim=4))
    engine.bind(data.spec)
    engine.save(tmp_path / "crossed.bin")
    return str(tmp_path / "crossed.bin")


def new(settings):
    return Learner(OnlineModel.load(settings.model), settings)


def state_of(learner):
    return {
        group: weights_hash({name: torch.as_tensor(each) for name, each in tensors.items()})
        for group, tensors in learner.checkpoint().tensors.items()
    }


def test_it_learns_who_likes_what(settings):
    made = settings()
    learner = new(made)
    for cut in Cuts(ListLog(stream(make_rows(1500))), 0, 32):
        learner.learn(cut)
    assert learner.join.counts["impressions"] == 1500
    assert learner.recent[0].total == 1500
    assert learner.recent[0].metrics()["auc"] > 0.75
    assert learner.guard.counts["learnt"] == 1500


def test_a_step_takes_so_many_examples_of_a_cut(settings):
    learner = new(settings(learner={"cut_events": 512, "step_examples": 10}))
    for cut in Cuts(ListLog(stream(make_rows(300))), 0, 512):
        before = learner.num_updates, learner.recent[0].total
        learner.learn(cut)
        num_learnt = learner.recent[0].total - before[1]
        assert learner.num_updates - before[0] == -(-num_learnt // 10)
    assert learner.recent[0].total == 300


@pytest.mark.parametrize("algorithm", ["adagrad", "sgd", "adam"])
def test_a_restart_at_any_cut_equals_the_uninterrupted_run(
    settings, crossed_model, tmp_path, algorithm
):
    learns = {"algorithm": algorithm, "step_examples": 12}
    made = settings(model=crossed_model, crosses=CROSSES, learner=learns)
    log = ListLog(stream(make_rows(400)))
    whole = new(made)
    for cut in Cuts(log, 0, 32):
        whole.learn(cut)
    wanted = state_of(whole)
    draw = np.random.default_rng(0)
    learner = new(made)
    store = CheckpointStore(tmp_path / "checkpoints")
    num_restarts = 0
    while True:
        learner_cuts = Cuts(log, learner.offset, 32)
        for _ in range(int(draw.integers(1, 6))):
            cut = learner_cuts.take()
            if cut is not None:
                learner.learn(cut)
        store.save(learner.checkpoint())
        if cut is None:
            break
        for _ in range(2):  # what a crash throws away
            lost = learner_cuts.take()
            if lost is not None:
                learner.learn(lost)
        learner = new(made)
        learner.load(store.load_latest(), log)
        num_restarts += 1
    assert num_restarts > 3
    assert state_of(learner) == wanted
    assert learner.checkpoint().state == whole.checkpoint().state


def test_cuts_lie_where_the_log_says(settings):
    records = stream(make_rows(200))
    whole = [[r.offset for r in cut] for cut in Cuts(ListLog(records), 0, 32)]
    assert [offset for cut in whole for offset in cut] == list(range(len(records)))
    growing = ListLog([])
    cuts, found = Cuts(growing, 0, 32), []
    for record in records:
        growing.records.append(record)
        cut = cuts.take()
        found += [] if cut is None else [[r.offset for r in cut]]
    assert found == whole


def test_a_checkpoint_of_other_settings_is_refused(settings):
    learner = new(settings())
    learner.learn(stream(make_rows(50)))
    other = new(settings(learner={"lr": 0.2}))
    with pytest.raises(CheckpointError, match="other settings"):
        other.load(learner.checkpoint(), ListLog([]))


def test_a_checkpoint_of_another_first_model_is_refused(settings, tmp_path):
    learner, log = new(settings()), ListLog(stream(make_rows(50)))
    learner.learn(log.records)
    checkpoint = learner.checkpoint()
    new(settings()).load(checkpoint, log)
    save_model(tmp_path / "other.bin", make_rows(300, seed=1))  # of other means and vocabularies
    other = new(settings(model=str(tmp_path / "other.bin")))
    with pytest.raises(CheckpointError, match=r"began with another model than .*other\.bin"):
        other.load(checkpoint, log)
    model = OnlineModel.load(settings().model)
    with torch.no_grad():
        next(model.engine.parameters()).add_(1)
    with pytest.raises(CheckpointError, match="began with another model"):
        Learner(model, settings()).load(checkpoint, log)
    del checkpoint.state["began_with"]  # as written before it was kept
    new(settings()).load(checkpoint, log)


def test_labels_must_be_those_of_the_model(settings):
    made = settings(join={"labels": {"buy": {"event": "buy"}}})
    with pytest.raises(ConfigError, match=r"join.labels has buy, the model learns click"):
        new(made)


def test_malformed_rows_are_counted_and_left_out(settings):
    rows = make_rows(60)
    rows[7]["price"] = "much"
    rows[9]["genre"] = ["a", "b"]
    learner = new(settings())
    for cut in Cuts(ListLog(stream(rows)), 0, 32):
        learner.learn(cut)
    assert learner.guard.counts["malformed"] == 2
    assert learner.guard.counts["learnt"] == 58


def test_a_number_too_large_is_malformed_and_the_others_of_its_step_are_learnt(settings):
    rows = make_rows(60)
    for place, price in ((7, 10**400), (9, 1e30), (11, 1e300)):  # an FM squares it
        rows[place]["price"] = price
    learner = new(settings())
    for cut in Cuts(ListLog(stream(rows)), 0, 32):
        learner.learn(cut)
    assert learner.guard.counts["malformed"] == 3
    assert learner.guard.counts["learnt"] == learner.recent[0].total == 57
    assert learner.num_skipped == 0
    assert np.isfinite(learner.recent[0].total_loss)


def test_predictions_before_learning_are_those_the_ranker_would_make(settings, tmp_path):
    save_model(tmp_path / "deep.bin", make_rows(300), DeepFM(embedding_dim=4, dropout=0.5))
    made = settings(model=str(tmp_path / "deep.bin"), learner={"step_examples": 1000})
    learner, model = new(made), OnlineModel.load(made.model)
    learner.learn(stream(make_rows(200)))
    rows, _, _, found = zip(*learner.window, strict=True)
    with evaluating(model.engine):
        wanted = model.probs(model.encode(rows))[:, 0]
    assert len(found) == 200
    np.testing.assert_array_equal(np.array(found, np.float32), wanted)
    assert learner.num_updates == 1


class Growing(TableModel):
    """Users have rows in a table that grows."""

    def __init__(self, layout=None, num_classes=None):
        super().__init__(layout, num_classes)

    def build(self, layout):
        tables = {"user_id": GrowingEmbedding(4, AdaGrad())}
        self.embedder = Embedder(layout, 4, tables=tables)
        self.head = torch.nn.Linear(self.embedder.width, 1)

    def forward(self, batch):
        return self.head(self.embedder.flat(batch))[:, 0]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ModelEngine("sasrec"), "sasrec learns by a task of its own, next_item"),
        (ModelEngine("two_tower", item=["genre"]), "two_tower learns by a task of its own, in_b"),
        (ModelEngine.wrap(Growing()), r"has tables that grow \(embedder.tables.table_0\)"),
    ],
)
def test_a_model_with_a_task_of_its_own_is_refused(model, words):
    rows = [{**row, "history": ["a"]} for row in make_rows(50)]
    features = {
        "sparse": {"user_id": {}, "genre": {}},
        "sequence": {"history": {"shares": "genre"}},
        "label": {"click": {}},
    }
    model.bind(InteractionDataset(columns_of(rows), features, cache="off").spec)
    with pytest.raises(ConfigError, match=words):
        OnlineModel(model)
