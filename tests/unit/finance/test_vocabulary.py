import pytest
import torch

from deepseek.datasets import TextDataset, train_tokenizer
from deepseek.errors import ConfigError, DataError
from deepseek.finance import grow_vocabulary
from deepseek.finance.corpus import hold_out, take_share
from deepseek.models import ModelEngine

LETTERS = "zabcdefghijklmnopqrstuvwxyz0123456789"
PLAIN = ["the shares of the bank fell", "profit rose in the quarter", "a rate is a rate, it said"]
NEWS = [f"{name} up {n}.5% after results" for n, name in enumerate(["$NVDA", "$TSLA"] * 8)]
TOKENIZER = train_tokenizer(
    [*PLAIN * 4, LETTERS, " ".join(LETTERS), "$ % # . : /"], "wordpiece", 140
)


def encoder(vocab_size=None, **options):
    torch.manual_seed(0)
    return ModelEngine(
        "encoder", vocab_size=vocab_size or TOKENIZER.vocab_size, context_length=32, num_layers=1,
        dim=16, heads=2, dropout=0.0, **options,
    )  # fmt: skip


def test_terms_begin_with_the_mean_of_their_parts_in_embedding_and_output():
    engine = encoder(outputs="vocabulary")
    with torch.no_grad():
        engine.module.head.bias.copy_(torch.randn(TOKENIZER.vocab_size))
    grown = grow_vocabulary(engine, TOKENIZER, NEWS, min_count=6)
    assert {"$nvda", "$tsla", "results"} <= {each.text for each in grown.terms}
    term = next(each for each in grown.terms if each.text == "$nvda")
    row = grown.tokenizer.vocabulary.index("$nvda")
    module, parts = grown.engine.module, list(term.parts)
    torch.testing.assert_close(
        module.embedding.tok_embed.weight[row], engine.module.head.weight[parts].mean(0)
    )
    torch.testing.assert_close(module.head.bias[row], engine.module.head.bias[parts].mean())
    assert module.head.weight is module.embedding.tok_embed.weight
    assert grown.saved > 0.3
    assert grown.after.tokens_per_word < grown.before.tokens_per_word


@pytest.mark.parametrize("spare", [0, 5, 500])
def test_rows_beyond_the_tokenizer_are_used_before_rows_are_added(spare):
    size = TOKENIZER.vocab_size
    grown = grow_vocabulary(encoder(size + spare, outputs="hidden"), TOKENIZER, NEWS)
    assert grown.engine.config["vocab_size"] == max(size + spare, size + len(grown.terms))


def test_a_model_carries_its_grown_vocabulary(tmp_path):
    (tmp_path / "a.csv").write_text(
        "text,label\n" + "\n".join(f"{t},{n % 2}" for n, t in enumerate(NEWS))
    )
    settings = {"sequence_length": 16, "cache": "off"}
    data = TextDataset(
        tmp_path / "a.csv", "sequence_classification", tokenizer=TOKENIZER, **settings
    )
    engine = encoder()
    engine.bind(data.spec)
    grown = grow_vocabulary(engine, None, NEWS, reserve=7)
    assert grown.num_reserved == 7
    grown.save(tmp_path / "out")
    loaded = ModelEngine.load(tmp_path / "out" / "model.bin")
    assert loaded.spec.tokenizer == grown.tokenizer.to_json()
    assert loaded.predict(NEWS[:2])[0].label in data.class_names
    report = (tmp_path / "out" / "vocabulary.md").read_text()
    assert f"{len(grown.terms)} new tokens" in report
    assert "| `$nvda` | cashtag | 8 | 5 |" in report
    assert "before: `$ n ##v ##d ##a" in report
    # words that were known are predicted as before
    plain = "the bank said in the quarter"
    before, after = engine.predict(plain), loaded.predict(plain)
    assert after.prob == pytest.approx(before.prob, abs=1e-5)


def test_rows_begin_from_the_distribution_or_from_word_vectors(tmp_path):
    engine = encoder(outputs="hidden")
    drawn = grow_vocabulary(engine, TOKENIZER, NEWS, init="distribution", seed=1)
    again = grow_vocabulary(engine, TOKENIZER, NEWS, init="distribution", seed=1)
    other = grow_vocabulary(engine, TOKENIZER, NEWS, init="distribution", seed=2)
    rows = [
        g.engine.module.embedding.tok_embed.weight[-len(g.terms) :] for g in (drawn, again, other)
    ]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    (tmp_path / "glove.txt").write_text("nvda 1 0\nbank 1 0\nrate -1 1\n")
    near = grow_vocabulary(
        engine, TOKENIZER, [*NEWS, *["nvda"] * 9], init="auxiliary", vectors=tmp_path / "glove.txt"
    )
    weight = near.engine.module.embedding.tok_embed.weight
    names = near.tokenizer.vocabulary
    if "bank" in names:
        torch.testing.assert_close(weight[names.index("nvda")], weight[names.index("bank")])


def test_wrong_arguments_are_refused():
    engine = encoder(outputs="hidden")
    with pytest.raises(ConfigError, match="max_terms=0 is not >= 1"):
        grow_vocabulary(engine, TOKENIZER, NEWS, max_terms=0)
    with pytest.raises(ConfigError, match="init='auxiliary' with vectors=None"):
        grow_vocabulary(engine, TOKENIZER, [*NEWS, *["nvda"] * 9], init="auxiliary")
    with pytest.raises(ConfigError, match="init='means' is unknown"):
        grow_vocabulary(engine, TOKENIZER, NEWS, init="means")
    with pytest.raises(ConfigError, match="'encoder' carries no tokenizer"):
        grow_vocabulary(engine, None, NEWS)
    with pytest.raises(ConfigError, match="the model a place for 50"):
        grow_vocabulary(encoder(50, outputs="hidden"), TOKENIZER, NEWS)
    with pytest.raises(DataError, match="the corpus holds no text"):
        grow_vocabulary(engine, TOKENIZER, [" "])


def test_equal_texts_are_held_out_together():
    texts = [f"text {n % 20}" for n in range(100)]
    train, out = hold_out(texts, 0.2, 0)
    assert len(out) == 4
    assert not set(train) & set(out)
    assert len(train) == 80
    assert 0.1 < sum(map(len, take_share(texts, 100, 0))) / 1000 < 0.2
    with pytest.raises(ConfigError, match="held_out=2 is not between"):
        hold_out(texts, 2, 0)
    with pytest.raises(DataError, match="none can be held out"):
        hold_out(["a", "a"], 0.1, 0)
