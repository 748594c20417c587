"""Text through our own models: what each kind of output learns, from files to a model file."""

import pytest
import torch

from deepseek.datasets import TextDataset
from deepseek.models import GPT, Encoder, Llama, ModelEngine
from deepseek.trainer import Trainer

pytest.importorskip("tokenizers", reason="pip install 'deepseek-framework[text]'")
QUIET = {"loggers": ("jsonl",), "num_workers": 0, "precision": "fp32", "device": "cpu"}
SIZES = {"context_length": 16, "num_layers": 1, "dim": 32, "heads": 2}
WORDS = [f"{animal} eats {food} every day" for animal in ("cat", "dog", "cow")
         for food in ("fish", "meat", "grass")] * 12  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))


def fit(model, data, run, epochs=4):
    trainer = Trainer(
        model, data, data, batch_size=16, epochs=epochs, lr=1e-2, run_dir=run, **QUIET
    )
    history = trainer.fit()
    losses = [record["val_loss"] for record in history]
    assert losses[-1] < 0.8 * losses[0]
    return ModelEngine.load(run / "model.bin")


def test_hidden_words_are_found(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(WORDS))
    data = TextDataset(
        tmp_path / "a.txt", "masked_language_modelling", tokenizer="wordpiece", vocab_size=60,
        sequence_length=16, document_per="line",
    )  # fmt: skip
    size = data.tokenizer.vocab_size
    model = Encoder(vocab_size=size, outputs="vocabulary", dropout=0.0, **SIZES)
    engine = fit(model, data, tmp_path / "run", epochs=6)
    hidden = data.tokenizer.encode(["cat eats fish every day"])[0]
    at = hidden.tolist().index(int(data.tokenizer.encode(["eats"], is_whole=False)[0][0]))
    expected, hidden[at] = int(hidden[at]), data.tokenizer.mask_token
    with torch.no_grad():
        found = engine.eval()(torch.from_numpy(hidden)[None])[0, at].argmax()
    assert int(found) == expected


def test_words_are_labelled(tmp_path):
    labels = {"cat": "B-ANIMAL", "dog": "B-ANIMAL", "cow": "B-ANIMAL"}
    text = "\n\n".join(
        "\n".join(f"{word} {labels.get(word, 'O')}" for word in line.split()) for line in WORDS
    )
    (tmp_path / "a.conll").write_text(text)
    data = TextDataset(
        tmp_path / "a.conll", "token_classification", tokenizer="wordpiece", vocab_size=60,
        sequence_length=16,
    )  # fmt: skip
    model = Encoder(vocab_size=data.tokenizer.vocab_size, outputs="tokens", dropout=0.0, **SIZES)
    run = tmp_path / "run"
    trainer = Trainer(model, data, data, batch_size=16, epochs=4, lr=1e-2, run_dir=run, **QUIET)
    assert trainer.fit()[-1]["val_entity_f1"] > 0.95


@pytest.mark.parametrize("make", [GPT, Llama])
def test_a_text_is_gone_on_with(make, tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh" * 200)
    data = TextDataset(tmp_path / "a.txt", tokenizer="characters", sequence_length=16)
    engine = fit(make(**SIZES), data, tmp_path / "run", epochs=6)
    assert engine.generate("abcd", 8, temperature=0).text == "efghabcd"
    assert "".join(engine.stream("cde", 5, temperature=0)) == "fghab"
