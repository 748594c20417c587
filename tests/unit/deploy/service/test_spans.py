"""Tickers and entities in the answers to texts."""

import pytest
import torch
from tests.unit.deploy.service.conftest import make_text_engine

from deepseek.datasets import TextDataset
from deepseek.models import Encoder, ModelEngine


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """A model of words that was trained to know three names."""
    folder = tmp_path_factory.mktemp("tagger")
    lines = ["Acme B-ORG", "Corp I-ORG", "buys O", "Zeta B-ORG", "in O", "Paris B-LOC", ""]
    (folder / "words.conll").write_text("\n".join(lines * 8))
    data = TextDataset(
        folder / "words.conll", "token_classification", tokenizer="wordpiece", vocab_size=80,
        sequence_length=32, cache="off", class_names=["O", "B-ORG", "I-ORG", "B-LOC", "I-LOC"],
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
