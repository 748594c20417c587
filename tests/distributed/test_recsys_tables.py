"""Models of tables on several ranks: rows divided between them, and samples."""

import random

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.ranks import Trajectory, run_ranks

from deepseek.datasets import InteractionDataset
from deepseek.models import ModelEngine
from deepseek.trainer import Trainer

USERS = 37  # with genres, an odd number of rows: one rank has fewer


def make_data():
    random.seed(0)
    users = [random.randrange(USERS) for _ in range(120)]
    genres = [random.choice("abcd") for _ in users]
    pairs = zip(users, genres, strict=True)
    clicks = [int("abcd"[u % 4] == g or random.random() < 0.1) for u, g in pairs]
    columns = {"user_id": [f"u{u}" for u in users], "genre": genres, "click": clicks}
    features = {"sparse": {"user_id": {}, "genre": {}}, "label": {"click": {}}}
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
