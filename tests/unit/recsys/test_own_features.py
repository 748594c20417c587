import pytest
import torch

from deepseek.datasets import InteractionDataset
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine

OWN = {"buy": ["price", "history"]}


@pytest.fixture(scope="module")
def data():
    table = {
        "user_id": ["a", "b", "a", "b"],
        "price": [1.0, None, 3.0, 9.0],
        "history": [["x"], ["y", "x"], [], ["x", "y"]],
        "click": [0, 1, 1, 0],
        "buy": [0, 1, 0, 0],
    }
    features = {
        "sparse": {"user_id": {"min_count": 1}},
        "dense": {"price": {}},
        "sequence": {"history": {"min_count": 1}},
        "label": {"click": {}, "buy": {}},
    }
    return InteractionDataset(table, features, cache="off")


def bound(name, data, **args):
    torch.manual_seed(0)
    engine = ModelEngine(name, **args)
    engine.bind(data.spec)
    for weight in engine.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return engine.eval()


@pytest.mark.parametrize("name", ["mmoe", "ple"])
def test_a_label_alone_sees_what_is_its_own(data, tmp_path, name):
    engine = bound(name, data, own_features=OWN)
    batch, _ = data.get_batch(range(4), 0)
    mine = ("dense", "sequence.history", "length.history")
    other = {key: batch[key].flip(0) if key in mine else batch[key] for key in batch}
    before, after = engine(batch), engine(other)
    assert torch.equal(before["click"], after["click"])
    assert not torch.isclose(before["buy"], after["buy"]).any()
    engine.save(tmp_path / "model.bin")
    again = ModelEngine.load(tmp_path / "model.bin").eval()(batch)
    assert all(torch.equal(again[label], before[label]) for label in before)


def test_a_tower_takes_the_vector_and_what_is_its_own(data):
    module = bound("mmoe", data, own_features=OWN).module
    batch, _ = data.get_batch(range(4), 0)
    flat = module.embedder.flat(batch)
    x = torch.zeros(4, 5)
    pooled = module.embedder.pooled(batch, "history")
    wanted = torch.cat([x, batch["dense"], pooled], 1)  # the price, and whether it is missing
    assert torch.equal(module.own.beside(x, flat, "buy"), wanted)
    assert module.own.beside(x, flat, "click") is x
    assert torch.equal(module.own.common(flat), module.embedder.sparse(batch)[:, 0])


@pytest.mark.parametrize(
    ("own", "words"),
    [({"sale": ["price"]}, "'sale', which is no label"),
     ({"buy": ["prize"]}, "'prize', which is no feature"),
     ({"buy": ["user_id", "price"], "click": ["history"]}, "no feature that all labels see"),
     (["price"], "says not which")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(data, own, words):
    with pytest.raises(ConfigError, match=words):
        bound("ple", data, own_features=own)
