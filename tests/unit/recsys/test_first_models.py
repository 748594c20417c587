"""Models of tables: what they compute, how they are built, kept, trained and asked."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from deepseek.datasets import InteractionDataset
from deepseek.errors import ConfigError, DataError
from deepseek.models import Embedder, FeatureLayout, ModelEngine, TableModel, tensor_layout
from deepseek.recsys import FactorizationMachine, Scorer
from deepseek.trainer import Trainer
from deepseek.trainer.evaluation import evaluate_model

NAMES = ["fm", "logistic_regression", "mlp"]


def table(num=300, seed=0):
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 6, num), rng.integers(0, 5, num)
    return {
        "user_id": user,
        "item_id": item,
        "price": [None if n % 9 == 0 else float(v) for n, v in enumerate(rng.normal(size=num))],
        "history": [rng.integers(0, 5, n % 4).tolist() for n in range(num)],
        "click": ((user + item) % 2).tolist(),
    }


FEATURES = {
    "sparse": {"user_id": {}, "item_id": {}},
    "dense": {"price": {}},
    "sequence": {"history": {"shares": "item_id"}},
    "cross": {"pair": {"of": ["user_id", "item_id"], "buckets": 500}},
    "label": {"click": {}},
}


@pytest.fixture(scope="module")
def data():
    return InteractionDataset(table(), FEATURES)


def bound(name, data, **args):
    torch.manual_seed(0)
    engine = ModelEngine(name, **args)
    engine.bind(data.spec)
    return engine.eval()


def batch_of(data, num=6):
    batch, _ = data.get_batch(range(num), 0)
    return batch


def test_an_fm_is_its_formula(data):
    engine = bound("fm", data, embedding_dim=3)
    model, batch = engine.module, batch_of(data)
    for weight in model.parameters():
        nn.init.normal_(weight)
    vectors, linear = model.embedder(batch), model.linear.embedder(batch)
    pairs = itertools.combinations(range(vectors.shape[1]), 2)
    wanted = linear.sum((1, 2)) + model.linear.bias
    wanted = wanted + sum((vectors[:, i] * vectors[:, j]).sum(1) for i, j in pairs)
    assert torch.allclose(engine(batch), wanted, atol=1e-4)


def test_an_embedder_gives_each_field_its_vector(data):
    layout = FeatureLayout.of(data.features)
    embedder, batch = Embedder(layout, 4), batch_of(data)
    assert layout.ids == {"user_id": 8, "item_id": 7, "pair": 502}
    assert layout.numbers == ("price", "price.missing")
    assert embedder(batch).shape == (6, embedder.num_fields, 4)
    assert embedder.flat(batch).shape == (6, embedder.width)
    rows = embedder.table.weight
    assert len(rows) == 8 + 7 + 502  # the history has the rows of the items
    user, item = batch["sparse"][:, 0], batch["sparse"][:, 1]
    assert torch.equal(embedder.sparse(batch)[:, 0], rows[user])
    assert torch.equal(embedder.sparse(batch)[:, 1], rows[8 + item])
    vectors, is_filled = embedder.sequence(batch, "history")
    assert is_filled.sum(1).tolist() == batch["length.history"].tolist()
    assert torch.equal(vectors[3, 0], rows[8 + batch["sequence.history"][3, 0]])
    assert torch.equal(embedder.pooled(batch, "history")[0], torch.zeros(4))  # it is empty
    wanted = vectors[3][is_filled[3]].mean(0)
    assert torch.allclose(embedder.pooled(batch, "history")[3], wanted)


def test_a_feature_may_have_a_table_of_its_own(data):
    layout, own = FeatureLayout.of(data.features), nn.Embedding(7, 4)
    embedder, batch = Embedder(layout, 4, {"item_id": own}), batch_of(data)
    assert len(embedder.table.weight) == 8 + 502
    assert torch.equal(embedder.sparse(batch)[:, 1], own(batch["sparse"][:, 1]))
    vectors, _ = embedder.sequence(batch, "history")
    assert torch.equal(vectors, own(batch["sequence.history"]))
    with pytest.raises(ConfigError, match="open ids"):
        Embedder(FeatureLayout(ids={"item": 0}), 4)
    with pytest.raises(ConfigError, match="no features"):
        Embedder(FeatureLayout(), 4)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_kept_whole(name, data, tmp_path):
    engine = bound(name, data)
    engine.save(tmp_path / "model.bin")
    again = ModelEngine.load(tmp_path / "model.bin").eval()
    assert again.spec == data.spec
    assert torch.equal(engine(batch_of(data)), again(batch_of(data)))
    assert "learns click" in again.describe()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_learns_and_is_asked_row_by_row(name, data, tmp_path):
    trainer = Trainer(
        ModelEngine(name), data, data, batch_size=50, epochs=12, lr=0.05, run_dir=tmp_path / "run",
        num_workers=0, loggers=["jsonl"], warmup=0,
    )  # fmt: skip
    history = trainer.fit()
    assert history.best["val_auc"] > 0.95  # the pair decides
    engine = ModelEngine.load(trainer.folder.model)
    columns = table()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    scores = Scorer(engine)(rows, batch_size=70)["click"]
    whole = engine.eval()(batch_of(data, len(data))).sigmoid()
    assert torch.allclose(scores, whole, atol=1e-6)
    metrics = evaluate_model(engine, data, precision="fp32")
    assert metrics["auc"] == pytest.approx(history.best["val_auc"], abs=0.02)
    with pytest.raises(DataError, match="'price' is missing"):
        Scorer(engine)([{"user_id": 1, "item_id": 2, "history": []}])


def test_a_batch_in_parts_learns_what_it_learns_as_one(data, tmp_path):
    found = []
    for parts in (1, 5):
        torch.manual_seed(0)
        trainer = Trainer(
            ModelEngine("fm"), data, batch_size=50, epochs=1, lr=0.01, grad_accum_steps=parts,
            run_dir=tmp_path / str(parts), num_workers=0, loggers=["jsonl"], precision="fp32",
        )  # fmt: skip
        trainer.fit()
        found.append(trainer.model.module.embedder.table.weight.detach().clone())
    assert torch.allclose(*found, atol=1e-5)


def test_a_stopped_run_goes_on_bit_for_bit(data, tmp_path):
    def trainer(where, **options):
        torch.manual_seed(0)
        return Trainer(
            ModelEngine("fm"), data, batch_size=50, max_steps=12, lr=0.01, num_workers=0,
            loggers=["jsonl"], checkpoint_every=4, run_dir=where, **options,
        )  # fmt: skip

    first = trainer(tmp_path / "run")
    first.fit()
    whole = first.model.state_dict()
    again = trainer(None, resume=tmp_path / "run" / "checkpoints" / "step_8")
    again.fit()
    state = again.model.state_dict()
    assert all(torch.equal(whole[name], state[name]) for name in whole)


def test_other_data_are_refused(data):
    with pytest.raises(ConfigError, match="features of the data are not those"):
        bound("fm", data).bind(InteractionDataset(table(60, seed=3), FEATURES).spec)
    two = InteractionDataset({**table(), "like": [0, 1, 0] * 100}, labels=["click", "like"])
    with pytest.raises(ConfigError, match="one output, the data have the labels click, like"):
        ModelEngine("mlp").bind(two.spec)
    with pytest.raises(ConfigError, match="num_classes=2"):
        FactorizationMachine(num_classes=2)
    with pytest.raises(ConfigError, match="embedding_dim=0"):
        ModelEngine("fm", embedding_dim=0)
    with pytest.raises(ConfigError, match="given rows"):
        bound("fm", data).predict([{"user_id": 1}])
    other = InteractionDataset(table(60, seed=3), FEATURES)
    with pytest.raises(DataError, match="different feature specs"):
        Trainer(ModelEngine("fm"), data, other)
    with pytest.raises(ConfigError, match="not trained on a table"):
        Scorer(ModelEngine("resnet20", num_classes=2))
    with pytest.raises(ConfigError, match="resnet20 does not take the rows of a table"):
        ModelEngine("resnet20").bind(data.spec)


def test_vocabularies_that_fit_no_model_file_are_refused_before_anything_learns(data, monkeypatch):
    monkeypatch.setattr(tensor_layout, "MAX_HEADER_BYTES", 300)
    with pytest.raises(ConfigError, match="above the 300 that can be read"):
        bound("fm", data)


class TwoLabels(TableModel):
    """A head for each label on the same vectors."""

    def __init__(self, layout=None, num_classes=None):
        super().__init__(layout, num_classes)

    def build(self, layout):
        self.embedder = Embedder(layout, 8)
        self.heads = nn.ModuleList(nn.Linear(self.embedder.width, 1) for _ in layout.labels)

    def forward(self, batch):
        x, names = self.embedder.flat(batch), self.layout.labels
        return {name: head(x)[:, 0] for name, head in zip(names, self.heads, strict=True)}


def test_several_labels_are_several_tasks(tmp_path):
    columns = table()
    stars = [None if n % 5 == 0 else 2.0 * (user % 3) for n, user in enumerate(columns["user_id"])]
    labels = {"click": {}, "stars": {"kind": "number", "missing": "mask"}}
    data = InteractionDataset({**columns, "stars": stars}, labels=labels, ignore=["history"])
    trainer = Trainer(
        TwoLabels(), data, data, batch_size=50, epochs=10, lr=0.05, run_dir=tmp_path / "run",
        num_workers=0, loggers=["jsonl"],
    )  # fmt: skip
    best = trainer.fit().best
    assert best["val_stars_r2"] > 0.9
    scores = Scorer(trainer.model)([{"user_id": 2, "item_id": 1, "price": 0.0}] * 3)
    assert [tuple(scores[name].shape) for name in labels] == [(3,), (3,)]
