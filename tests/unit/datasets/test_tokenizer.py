import json
import pickle

import numpy as np
import pytest
import tokenizers

from deepseek.datasets import Tokenizer, load_tokenizer, read_texts, train_tokenizer
from deepseek.datasets.tokenizer import MAX_FILE_BYTES, make_character_tokenizer
from deepseek.errors import ConfigError, DataError

TEXTS = ["The cat sat on the mat.", "A cat and a hat, naïve café!", "the end of the cat"] * 20


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_trained_tokenizer_is_its_json_text(kind, tmp_path):
    first = train_tokenizer(TEXTS, kind, 300)
    assert first.to_json() == train_tokenizer(TEXTS, kind, 300).to_json()
    first.save(tmp_path)
    for other in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(first))):
        assert other.vocabulary == first.vocabulary
        for ours, theirs in zip(first.encode(TEXTS), other.encode(TEXTS), strict=True):
            assert np.array_equal(ours, theirs)
    assert first.vocab_size <= 300
    assert first.pad_token == 0
    assert None not in (first.mask_token, first.document_token)


def test_byte_level_bpe_knows_every_text_and_gives_it_back():
    tokenizer = train_tokenizer(TEXTS, "bpe", 300)
    for text in ["cat", "  two  blanks\n", "日本語 \x00 🙂", ""]:
        assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_many_texts_are_encoded_as_one_by_one_and_without_the_libraries_own_pool():
    tokenizer = train_tokenizer(TEXTS, "wordpiece", 200)
    texts = [f"{text} {number}" for number, text in enumerate(TEXTS * 20)]
    together = tokenizer.encode(texts, is_whole=False)
    alone = [tokenizer.encode([text], is_whole=False)[0] for text in texts]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


def test_characters_are_sorted_and_others_are_refused():
    tokenizer = make_character_tokenizer(["banana\n"])
    assert tokenizer.vocabulary == ("\n", "a", "b", "n")
    assert tokenizer.decode(tokenizer.encode(["nab\n"])[0]) == "nab\n"
    with pytest.raises(DataError, match=r"1 characters that are not of the vocabulary: \['z'\]"):
        tokenizer.encode(["bz"])
    assert make_character_tokenizer(["ab"], has_documents=True).document_token == 2


def test_a_vocab_txt_is_bert_s(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(["The cats, dog"])[0].tolist() == [2, 5, 6, 7, 8, 1, 3]
    assert tokenizer.frame == ((2,), (3,))
    assert tokenizer.special_tokens == (0, 1, 2, 3, 4)
    assert np.flatnonzero(tokenizer.continues_word).tolist() == [7]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(tmp_path).encode(["The"], is_whole=False)[0].tolist() == [1]
    bert = tokenizers.BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=True)
    text = "the cat's CATS , thé"
    assert tokenizer.encode([text])[0].tolist() == bert.encode(text).ids


def test_accents_stay_where_the_settings_of_a_vocab_txt_say_so(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "café", "cafe", "日", "##本", "本"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")

    def shown(**settings):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = load_tokenizer(tmp_path)
        tokens = tokenizer.encode(["Café 日本"], is_whole=False)[0]
        return [tokenizer.vocabulary[token] for token in tokens]

    assert shown() == shown(strip_accents=None) == ["cafe", "日", "本"]
    assert shown(strip_accents=False) == ["café", "日", "本"]
    assert shown(tokenize_chinese_chars=False) == ["cafe", "日", "##本"]


def test_vocab_json_with_merges_is_byte_level_bpe(tmp_path):
    trained = train_tokenizer(TEXTS, "bpe", 300)
    model = json.loads(trained.to_json())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(TEXTS[:1])[0].tolist() == trained.encode(TEXTS[:1])[0].tolist()


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_words_keep_the_number_that_each_token_is_of(kind):
    tokenizer = train_tokenizer(TEXTS, kind, 280)
    words = ["The", "cat", "café,", "hat"]
    found = tokenizer.encode_words([words])[0]
    assert sorted(set(found.words.tolist())) == [0, 1, 2, 3]
    assert (np.diff(found.words) >= 0).all()
    third = found.tokens[found.words == 2]
    expected = "cafe," if kind == "wordpiece" else "café,"
    assert tokenizer.decode(third).replace(" ", "") == expected


def test_padding_and_truncation_in_the_file_do_not_count():
    backend = tokenizers.Tokenizer.from_str(train_tokenizer(TEXTS, "wordpiece", 100).to_json())
    backend.enable_padding(length=64)
    backend.enable_truncation(4)
    found = Tokenizer(backend.to_str()).encode(["the cat", "the cat sat on the mat"])
    assert len(found[0]) < len(found[1]) < 64


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "vocab.json"])
def test_what_is_no_tokenizer_is_refused(name, tmp_path):
    with pytest.raises(DataError, match="holds neither"):
        load_tokenizer(tmp_path)
    (tmp_path / name).write_text('{"model": "x"}')
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(DataError, match=r"no tokenizer|lacks \[UNK\]|no byte-level BPE"):
        load_tokenizer(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path / name)
    with open(tmp_path / name, "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match="larger than"):
        load_tokenizer(tmp_path / name)


def test_a_number_beyond_all_tokens_is_refused():
    content = json.loads(make_character_tokenizer(["abc"]).to_json())
    content["model"]["vocab"]["c"] = 2**31
    with pytest.raises(DataError, match="gives 3 tokens the numbers 0 to"):
        Tokenizer(json.dumps(content)).vocab_size  # noqa: B018


def test_training_says_what_it_does_not_know(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'wordpiece'"):
        train_tokenizer(TEXTS, "word_piece")
    with pytest.raises(ConfigError, match="vocab_size=100 is too small for bpe"):
        train_tokenizer(TEXTS, "bpe", 100)
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert list(read_texts(tmp_path / "a.txt")) == ["one", "two"]
