import json
import time

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers

from deepseek.datasets import Tokenizer, train_tokenizer
from deepseek.datasets.tokenizer import make_character_tokenizer
from deepseek.datasets.tokenizer_growth import (
    TermCounter,
    grow_tokenizer,
    reserved_tokens,
)
from deepseek.errors import ConfigError

PLAIN = ["the shares of the bank fell", "profit rose in the quarter", "a rate is a rate, it said"]
NEWS = ["$NVDA beats, see https://t.co/Ab1 #earnings", "NVDA up 2.5% in the U.S. today"] * 6
LETTERS = "zabcdefghijklmnopqrstuvwxyz0123456789"
WORDPIECE = train_tokenizer(
    [*PLAIN * 4, LETTERS, " ".join(LETTERS), "$ % # . : /"], "wordpiece", 140
)
BPE = train_tokenizer(PLAIN * 4, "bpe", 300)


def shown(tokenizer, text):
    tokens = tokenizer.encode([text], is_whole=False)[0]
    return [tokenizer.vocabulary[token] for token in tokens]


def tokens_of(tokenizer, texts):
    return sum(len(shown(tokenizer, text)) for text in texts)


def grown_on(tokenizer, texts, **options):
    counter = TermCounter(tokenizer)
    counter.update(texts)
    return grow_tokenizer(tokenizer, [c.text for c in counter.candidates(3)], **options)


def test_candidates_are_ordered_by_the_tokens_that_they_save():
    counter = TermCounter(WORDPIECE)
    counter.update(NEWS)
    found = counter.candidates(3)
    saved = [each.saved for each in found]
    assert saved == sorted(saved, reverse=True)
    assert saved[0] == found[0].count * (len(found[0].parts) - 1)
    assert sum(saved) == counter.num_tokens - tokens_of(grown_on(WORDPIECE, NEWS).tokenizer, NEWS)
    kinds = {each.text: each.kind for each in found}
    assert kinds["$nvda"] == "cashtag"
    assert kinds["2.5%"] == "number"
    assert kinds["https://t.co/"] == "address"
    assert kinds["u.s."] == kinds["#earnings"] == "compound"
    assert kinds["nvda"] == "term"
    assert counter.num_tokens == tokens_of(WORDPIECE, NEWS)


def test_a_word_counts_where_no_better_compound_has_it():
    counter = TermCounter(WORDPIECE)
    counter.update(["#earnings"] * 100 + ["earnings"] * 4 + ["#nvda"] * 5 + ["nvda"] * 40)
    found = {each.text: each.count for each in counter.candidates(3)}
    assert found == {"#earnings": 100, "earnings": 4, "nvda": 40 + 5, "#nvda": 5}
    assert [each.text for each in counter.candidates(5)] == ["#earnings", "nvda", "#nvda"]
    counter.forget(["#earnings"])
    assert counter.words["earnings"] == 4
    assert "#earnings" not in counter.words


@pytest.mark.parametrize("tokenizer", [WORDPIECE, BPE], ids=["wordpiece", "bpe"])
def test_terms_become_single_tokens_and_nothing_else_is_encoded_otherwise(tokenizer):
    growth = grown_on(tokenizer, NEWS)
    assert growth.tokenizer.vocab_size == tokenizer.vocab_size + len(growth.added)
    assert growth.tokenizer.vocabulary[: tokenizer.vocab_size] == tokenizer.vocabulary
    for text in PLAIN:
        assert shown(growth.tokenizer, text) == shown(tokenizer, text)
    assert len(shown(growth.tokenizer, NEWS[0])) < len(shown(tokenizer, NEWS[0]))
    for token, parts in growth.added.items():
        text = growth.tokenizer.vocabulary[token]
        assert "".join(
            growth.tokenizer.vocabulary[part].removeprefix("##") for part in parts
        ) == text.removeprefix("##")


def test_compounds_of_finance_are_single_tokens():
    grown = grown_on(WORDPIECE, NEWS).tokenizer
    assert shown(grown, NEWS[0])[:2] == ["$nvda", "beats"]
    assert "https://t.co/" in shown(grown, NEWS[0])
    assert {"2.5%", "u.s."} <= set(shown(grown, NEWS[1]))
    # where a word goes on, it is none: the pieces are those of before
    assert "$nvda" not in shown(grown, "$nvdax")
    assert shown(grown, "12.5%") == shown(WORDPIECE, "12.5%")


def test_what_holds_no_compound_is_cut_as_by_the_rules_of_bert():
    grown = grown_on(WORDPIECE, NEWS).tokenizer
    ours = Backend.from_str(grown.to_json()).pre_tokenizer
    berts = pre_tokenizers.BertPreTokenizer()
    for text in (
        "it's a_b [x] 5€ (q4) — «né» 日本; end.",
        "  two   blanks\tin lines\n",
        "$ 2. 5 u.",
        "",
    ):
        assert ours.pre_tokenize_str(text) == berts.pre_tokenize_str(text)


def test_a_grown_tokenizer_grows_again():
    once = grown_on(WORDPIECE, NEWS).tokenizer
    twice = grow_tokenizer(once, ["$tsla", "tsla"]).tokenizer
    assert shown(twice, "$TSLA and $NVDA") == ["$tsla", *shown(twice, "and"), "$nvda"]


def test_places_that_stand_for_nothing_are_taken_first():
    laid = grow_tokenizer(WORDPIECE, [], reserve=3).tokenizer
    assert len(reserved_tokens(laid)) == 3
    assert laid.vocab_size == WORDPIECE.vocab_size + 3
    growth = grow_tokenizer(laid, ["nvda", "tsla", "aapl", "msft"])
    assert growth.replaced == 3
    assert growth.tokenizer.vocab_size == laid.vocab_size + 1
    assert not reserved_tokens(growth.tokenizer)
    kept = grow_tokenizer(laid, ["nvda", "tsla", "aapl", "msft"], fits_in=laid.vocab_size)
    assert len(kept.added) == 3
    assert kept.tokenizer.vocab_size == laid.vocab_size


def test_new_tokens_of_bpe_are_merges_and_those_between_are_tokens_too():
    growth = grow_tokenizer(BPE, ["Ġnvda"])
    model = json.loads(growth.tokenizer.to_json())["model"]
    assert shown(growth.tokenizer, "up nvda")[-1] == "Ġnvda"
    assert len(growth.added) == len(shown(BPE, " nvda")) - 1
    assert len(model["merges"]) > len(json.loads(BPE.to_json())["model"]["merges"])
    assert growth.tokenizer.decode(growth.tokenizer.encode(["up nvda"])[0]) == "up nvda"


def test_a_kind_that_cannot_grow_is_refused():
    with pytest.raises(ConfigError, match="is a WordLevel tokenizer, whose vocabulary cannot grow"):
        grow_tokenizer(make_character_tokenizer(["abc"]), ["abc"])
    with pytest.raises(ConfigError, match="reserve=-1 is below 0"):
        grow_tokenizer(WORDPIECE, [], reserve=-1)
    other = json.loads(grow_tokenizer(WORDPIECE, ["2.5"]).tokenizer.to_json())
    other["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    with pytest.raises(ConfigError, match="cuts texts by WhitespaceSplit"):
        grow_tokenizer(Tokenizer(json.dumps(other)), ["nvda"])


def test_a_bpe_that_does_not_cut_to_words_is_refused():
    sentencepiece = json.loads(BPE.to_json())
    sentencepiece["pre_tokenizer"] = None
    sentencepiece["normalizer"] = {"type": "Prepend", "prepend": "▁"}
    tokenizer = Tokenizer(json.dumps(sentencepiece))
    message = "does not cut texts to words, so its vocabulary cannot grow"
    with pytest.raises(ConfigError, match=message):
        TermCounter(tokenizer)
    with pytest.raises(ConfigError, match=message):
        grow_tokenizer(tokenizer, ["▁nvda"])


@pytest.mark.long
def test_tokenising_stays_as_fast(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    words = [f"w{n}x{n * 7}" for n in range(1500)]
    texts = [" ".join([*words[n : n + 20], *PLAIN, f"${n}.5"]) for n in range(1400)]
    grown = grow_tokenizer(WORDPIECE, [*words[:750], *(f"${n}.5" for n in range(700))]).tokenizer
    times = {"old": [], "new": []}
    for _ in range(5):
        for name, tokenizer in (("old", WORDPIECE), ("new", grown)):
            backend = Backend.from_str(tokenizer.to_json())
            began = time.process_time()
            backend.encode_batch(texts)
            times[name].append(time.process_time() - began)
    assert min(times["new"]) < min(times["old"]) / 0.95
