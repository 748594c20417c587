"""Tickers and entities in the answers to texts."""

import pytest
import torch
from tests.unit.deploy.service.conftest import make_text_engine

from deepseek.datasets import MultiTaskDataset, TextDataset
from deepseek.deploy.service import app
from deepseek.models import Encoder, ModelEngine, MultiHead
from deepseek.trainer import Trainer

LINES = ["Acme B-ORG", "Corp I-ORG", "buys O", "Zeta B-ORG", "in O", "Paris B-LOC", ""]
NAMES = ["O", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """A model of words that was trained to know three names."""
    folder = tmp_path_factory.mktemp("tagger")
    (folder / "words.conll").write_text("\n".join(LINES * 8))
    data = TextDataset(
        folder / "words.conll", "token_classification", tokenizer="wordpiece", vocab_size=80,
        sequence_length=32, cache="off", class_names=NAMES,
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = Encoder(
        vocab_size=data.tokenizer.vocab_size, context_length=32, num_layers=1, dim=32, heads=2,
        outputs="tokens", dropout=0.0,
    )  # fmt: skip
    engine = ModelEngine.wrap(encoder)
    engine.bind(data.spec)
    batch, _ = data.get_batch([0], 0)
    optimizer = torch.optim.Adam(engine.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        logits = engine(batch["inputs"]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, batch["targets"].flatten())
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    engine.save(folder / "tagger.bin")
    return folder / "tagger.bin"


def test_entities_are_found_at_their_places_in_the_text(ask, tagger):
    text = "  Acme Corp buys Zeta   in Paris"

    async def talk(client):
        return (await client.post("/predict", json={"texts": [text, "in"]})).json()

    first, second = ask(talk, files={("tagger", "v1"): tagger})["predictions"]
    found = [(span["kind"], span["text"]) for span in first["spans"]]
    assert found == [("ORG", "Acme Corp"), ("ORG", "Zeta"), ("LOC", "Paris")]
    assert all(text[span["start"] : span["end"]] == span["text"] for span in first["spans"])
    assert all(0 < span["prob"] <= 1 for span in first["spans"])
    assert second["spans"] == []


def test_a_version_is_not_closed_before_its_entities_are_found(ask, tagger, monkeypatch):
    users = []

    async def find(texts, rows, version):
        users.append(version._num_users)
        return [[] for _ in texts]

    monkeypatch.setattr(app, "entities_of", find)

    async def talk(client):
        return await client.post("/predict", json={"text": "Acme Corp"})

    assert ask(talk, files={("tagger", "v1"): tagger}).status_code == 200
    assert users == [1]


def test_tickers_come_with_the_class_of_a_text(ask, tmp_path):
    make_text_engine(tmp_path).save(tmp_path / "model.bin")

    async def talk(client):
        body = {"text": "$ALLY a good film"}
        plain = (await client.post("/predict", json=body)).json()
        spans = (await client.post("/predict?spans=tickers", json=body)).json()
        other = await client.post("/predict?spans=stars", json=body)
        numbers = await client.post("/predict?spans=tickers", json={"inputs": [[1, 2, 3]]})
        return plain, spans, other, numbers

    plain, spans, other, numbers = ask(talk, files={("films", "v1"): tmp_path / "model.bin"})
    assert "spans" not in plain["predictions"][0]
    (found,) = spans["predictions"]
    assert found["label"] == plain["predictions"][0]["label"]
    assert found["spans"] == [
        {"kind": "ticker", "text": "$ALLY", "ticker": "ALLY", "start": 0, "end": 5}
    ]
    assert other.status_code == 422
    assert "tickers" in other.json()["fix"]
    assert numbers.status_code == 422
    assert "spans are of texts" in numbers.json()["error"]


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """A model of texts and of their words."""
    folder = tmp_path_factory.mktemp("joint")
    (folder / "words.conll").write_text("\n".join(LINES * 16))
    deals = ["Acme Corp buys Zeta in Paris,up", "Zeta in Paris,down"]
    (folder / "deals.csv").write_text("\n".join(["text,label", *deals * 8]))
    words = TextDataset(
        folder / "words.conll", "token_classification", tokenizer="wordpiece", vocab_size=80,
        sequence_length=32, cache="off", class_names=NAMES,
    )  # fmt: skip
    deals = TextDataset(
        folder / "deals.csv", "sequence_classification", tokenizer=words.tokenizer,
        sequence_length=24, cache="off",
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = Encoder(
        vocab_size=words.tokenizer.vocab_size, context_length=32, num_layers=1, dim=32, heads=2,
        outputs="hidden", dropout=0.0,
    )  # fmt: skip
    trainer = Trainer(
        MultiHead.around(encoder), MultiTaskDataset({"deal": deals, "names": words}),
        batch_size=16, epochs=30, lr=1e-2, loggers=(), num_workers=0, device="cpu",
        run_dir=folder / "run", checkpoint_every=None,
    )  # fmt: skip
    trainer.fit()
    return trainer.folder.model


def test_a_model_of_texts_and_words_answers_with_both(ask, joint):
    texts = ["Acme Corp buys Zeta in Paris", "Zeta in Paris"]

    async def talk(client):
        about = (await client.get("/v2/models/joint")).json()
        body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": texts}]}
        tensors = (await client.post("/v2/models/joint/infer", json=body)).json()
        return (await client.post("/predict", json={"texts": texts})).json(), about, tensors

    files = {("joint", "v1"): joint}
    said, about, tensors = ask(talk, files=files)
    first, second = said["predictions"]
    assert [each["tasks"]["deal"]["label"] for each in (first, second)] == ["up", "down"]
    assert list(first["tasks"]) == ["deal"]
    found = [(span["task"], span["kind"], span["text"]) for span in first["spans"]]
    assert found == [
        ("names", "ORG", "Acme Corp"), ("names", "ORG", "Zeta"), ("names", "LOC", "Paris"),
    ]  # fmt: skip
    assert all(texts[1][span["start"] : span["end"]] == span["text"] for span in second["spans"])
    assert [each["shape"] for each in about["outputs"]] == [[-1, 2], [-1, -1, 5]]
    deal, names = tensors["outputs"]
    assert deal["shape"] == [2, 2]
    assert names["shape"] == [2, names["shape"][1], 5]
    engine = ModelEngine.load(joint)
    assert engine.predict(texts[0])["deal"].prob == pytest.approx(deal["data"][1], abs=1e-4)
