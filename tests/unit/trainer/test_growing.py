"""Runs of models whose tables grow: steps, checkpoints, model files."""

import random

import pytest
import torch
from torch import nn

from deepseek.datasets import InteractionDataset
from deepseek.errors import ConfigError
from deepseek.models import Embedder, ModelEngine, TableModel
from deepseek.recsys.tables import AdaGrad, GrowingEmbedding
from deepseek.trainer import Trainer


class GrowingModel(TableModel):
    def __init__(self, admit_after=1, adagrad=(0.1, 0.0), layout=None, num_classes=None):
        super().__init__(layout, num_classes, admit_after=admit_after, adagrad=adagrad)

    def build(self, layout):
        optimizer = AdaGrad(*self.config["adagrad"])
        table = GrowingEmbedding(4, optimizer, admit_after=self.config["admit_after"])
        self.embedder = Embedder(layout, 4, tables={"user_id": table})
        self.head = nn.Linear(self.embedder.width, 1)

    @property
    def table(self):
        return next(iter(self.embedder.tables.values()))

    def forward(self, batch):
        return self.head(self.embedder.flat(batch))[:, 0]


@pytest.fixture(scope="module")
def data():
    random.seed(0)
    users = [f"u{random.randrange(60)}" for _ in range(400)]
    clicks = [int(int(user[1:]) % 2 == 0) for user in users]
    features = {
        "sparse": {"user_id": {"encoding": "open"}, "genre": {}},
        "label": {"click": {}},
    }
    columns = {"user_id": users, "genre": random.choices("abc", k=400), "click": clicks}
    return InteractionDataset(columns, features)


def trainer_of(data, folder, model=None, **options):
    torch.manual_seed(0)
    options = {"max_steps": 12, "val_data": data, **options}
    return Trainer(
        model or GrowingModel(), data, batch_size=50, lr=0.01, num_workers=0, loggers=["jsonl"],
        precision=options.pop("precision", "fp32"), run_dir=folder, warmup=0, **options,
    )  # fmt: skip


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_learns_the_rows_of_ids_and_its_file_holds_them(data, tmp_path):
    trainer = trainer_of(data, tmp_path / "run", max_steps=40)
    assert trainer.fit().best["val_auc"] > 0.95  # the user decides
    table = trainer.model.module.table
    assert 50 < len(table) <= 60
    assert table.clock == 40
    trainer.model.save(tmp_path / "last.bin")
    module = GrowingModel(layout=trainer.model.module.layout.to_json())
    again = ModelEngine.load(tmp_path / "last.bin", module=module)
    assert same(again.module.state_dict(), trainer.model.module.state_dict())


@pytest.mark.parametrize("admit_after", [1, 3])
def test_a_stopped_run_goes_on_bit_for_bit(data, tmp_path, admit_after):
    def begin(folder, **options):
        model = GrowingModel(admit_after)
        return trainer_of(
            data, folder, model, checkpoint_every=3, max_steps=6, val_data=None, **options
        )

    first = begin(tmp_path / "run")
    first.fit()
    whole = first.model.module.state_dict()
    again = begin(None, resume=tmp_path / "run" / "checkpoints" / "step_3")
    again.fit()
    assert same(again.model.module.state_dict(), whole)


@pytest.mark.parametrize("admit_after", [1, 3])
def test_a_batch_in_parts_learns_what_it_learns_as_one(data, tmp_path, admit_after):
    found = []
    for parts in (1, 5):
        model, folder = GrowingModel(admit_after), tmp_path / str(parts)
        trainer = trainer_of(data, folder, model, grad_accum_steps=parts, val_data=None)
        trainer.fit()
        found.append(trainer.model.module.table.state_dict())
    assert torch.equal(found[0]["ids"], found[1]["ids"])
    torch.testing.assert_close(found[0]["weight"], found[1]["weight"], rtol=1e-4, atol=1e-6)


def test_the_norm_counts_rows_that_grow_and_clipping_reaches_them(data, tmp_path):
    def first_step(limit):
        # with so large a sum of squares a step is -0.1 times the gradient
        model = GrowingModel(adagrad=(100.0, 1e6))
        trainer = trainer_of(
            data, tmp_path / str(limit), model, max_steps=1, val_data=None, optimizer="sgd",
            weight_decay=0.0, clip_grad_norm=limit, log_every=1,
        )  # fmt: skip
        norm = trainer.fit().records[0]["grad_norm"]
        module = trainer.model.module
        weights = {name: each.detach() / 0.01 for name, each in module.named_parameters()}
        return norm, {**weights, "rows": module.table.state_dict()["weight"] / 0.1}

    norm, free = first_step(None)
    same_norm, halved = first_step(norm / 2)
    assert same_norm == norm
    squares = {name: float((2 * (halved[name] - free[name])).square().sum()) for name in free}
    assert squares["rows"] > 1e-3 * norm**2
    assert sum(squares.values()) == pytest.approx(norm**2, rel=1e-2)


def test_what_a_table_would_not_follow_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match=r"do not go with ema_decay=0\.9"):
        trainer_of(data, tmp_path, ema_decay=0.9).fit()
