"""Models of tables on several ranks: rows divided between them, and samples."""

import random

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.ranks import RankFailed, Trajectory, run_ranks
from torch import nn

from deepseek.datasets import InteractionDataset
from deepseek.models import Embedder, ModelEngine, TableModel
from deepseek.models.growing_table import growing_tables
from deepseek.recsys.tables import AdaGrad, GrowingEmbedding
from deepseek.trainer import Trainer

USERS = 37  # with genres, an odd number of rows: one rank has fewer


def make_data(**sparse):
    random.seed(0)
    users = [random.randrange(USERS) for _ in range(120)]
    genres = [random.choice("abcd") for _ in users]
    pairs = zip(users, genres, strict=True)
    clicks = [int("abcd"[u % 4] == g or random.random() < 0.1) for u, g in pairs]
    columns = {"user_id": [f"u{u}" for u in users], "genre": genres, "click": clicks}
    features = {"sparse": {"user_id": {}, "genre": {}, **sparse}, "label": {"click": {}}}
    return InteractionDataset(columns, features, cache="off")


def train(run_dir, **settings):
    torch.manual_seed(0)
    trajectory = Trajectory()
    data = make_data()
    trainer = Trainer(
        ModelEngine("fm"), data, data, batch_size=24, max_steps=6, lr=0.05, precision="fp32",
        loggers=["jsonl"], num_workers=0, device="cpu", run_dir=run_dir, callbacks=[trajectory],
        **settings,
    )  # fmt: skip
    history = trainer.fit()
    table = trainer.model.module.embedder.table.weight
    held = table.to_local() if hasattr(table, "to_local") else table
    return trajectory.losses, history.records[-1]["val_auc"], tuple(held.shape), len(table)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return train(folder / "run"), load_file(folder / "run" / "model.bin")


@pytest.mark.parametrize("parallel", ["tp2", "dp2"])
def test_several_ranks_learn_what_one_learns(alone, tmp_path, parallel):
    """Losses, validation and the model file of rows divided and put together again."""
    (losses, auc, _, num_rows), weights = alone
    results = run_ranks(2, train, tmp_path / "run", folder=tmp_path, parallel=parallel)
    for found, found_auc, (held, _), _ in results:
        torch.testing.assert_close(found, losses, rtol=1e-4, atol=1e-5)
        assert abs(found_auc - auc) < 1e-3
        assert (held < num_rows) == (parallel == "tp2")
    together = load_file(tmp_path / "run" / "model.bin")
    assert together.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-3, atol=1e-4)
    if parallel == "tp2":
        assert sum(held for _, _, (held, _), _ in results) == num_rows


class GrowingModel(TableModel):
    def __init__(self, admit_after=1, layout=None, num_classes=None):
        super().__init__(layout, num_classes, admit_after=admit_after)

    def build(self, layout):
        optimizer = AdaGrad(lr=0.1, initial_accumulator=1.0)
        admit_after = self.config["admit_after"]
        table = GrowingEmbedding(4, optimizer, admit_after=admit_after, scale=0.3)
        self.embedder = Embedder(layout, 4, tables={"user_id": table})
        self.head = nn.Linear(self.embedder.width, 1)

    def forward(self, batch):
        return self.head(self.embedder.flat(batch))[:, 0]


def train_growing(run_dir, admit_after=1, **settings):
    torch.manual_seed(0)
    trajectory = Trajectory()
    data = make_data(user_id={"encoding": "open"})
    trainer = Trainer(
        GrowingModel(admit_after), data, data, batch_size=24, max_steps=6, lr=0.05,
        precision="fp32", loggers=["jsonl"], num_workers=0, device="cpu", run_dir=run_dir,
        callbacks=[trajectory], clip_grad_norm=0.1, checkpoint_every=3, **settings,
    )  # fmt: skip
    trainer.fit()
    (table,) = growing_tables(trainer.model.module).values()
    return trajectory.losses, dict(table.state_dict())


@pytest.mark.parametrize("admit_after", [1, 3])
def test_a_table_grows_alike_on_several_ranks(tmp_path, admit_after):
    """Ids that one rank alone has met, counts and gradients of both, and a norm that is clipped."""
    losses, alone = train_growing(tmp_path / "alone", admit_after)
    results = run_ranks(
        2, train_growing, tmp_path / "run", admit_after, folder=tmp_path, parallel="dp2"
    )
    (first_losses, first), (_, second) = results
    torch.testing.assert_close(first_losses, losses, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(first[name], second[name]) for name in alone)
    assert torch.equal(first["ids"], alone["ids"])
    assert len(first["ids"]) > USERS // 2
    torch.testing.assert_close(first["weight"], alone["weight"], rtol=1e-4, atol=1e-5)
    stored = load_file(tmp_path / "run" / "model.bin")
    (weight,) = (stored[name] for name in stored if name.endswith("table_0.weight"))
    assert torch.equal(weight, first["weight"])
    halfway = tmp_path / "run" / "checkpoints" / "step_3"
    _, again = train_growing(None, admit_after, resume=halfway)  # by one rank
    torch.testing.assert_close(again["weight"], alone["weight"], rtol=1e-4, atol=1e-5)


def test_tables_that_grow_are_not_divided(tmp_path):
    with pytest.raises(RankFailed, match="do not go with parallel=tp2"):
        run_ranks(2, train_growing, tmp_path / "run", folder=tmp_path, parallel="tp2")
