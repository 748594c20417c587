"""Texts as the tokens that a model is asked about, among them long and empty ones."""

import torch

from deepseek.datasets import DataSpec, FieldSpec, train_tokenizer
from deepseek.models import Encoder, ModelEngine, sentence_vectors
from deepseek.models.text_batches import locate_words

TEXTS = ["the cat sat", "a dog barked loudly", "no news is good news"] * 10


def spec_of(tokenizer, length, **known):
    fields = {"inputs": FieldSpec((length,), "int64")}
    return DataSpec("sequence_classification", fields, tokenizer=tokenizer.to_json(), **known)


def test_the_last_word_that_fits_ends_where_it_ends():
    tokenizer = train_tokenizer(TEXTS, "wordpiece", 60)
    text = "the cat barked"
    first, last, beyond = locate_words(text, spec_of(tokenizer, 40)).tolist()
    assert text[beyond[1] : beyond[2]] == "barked"
    tokens, _ = tokenizer.locate(text)
    assert len(tokens) > beyond[0]  # "barked" is several tokens
    # room for [CLS], "the cat", [SEP]
    assert locate_words(text, spec_of(tokenizer, beyond[0] + 1)).tolist() == [first, last]
    # a word that begins in the row is a whole one
    assert locate_words(text, spec_of(tokenizer, beyond[0] + 2)).tolist() == [first, last, beyond]


def test_an_empty_text_has_no_nan():
    tokenizer = train_tokenizer(TEXTS, "bpe", 280)  # puts nothing around a text
    torch.manual_seed(0)
    encoder = Encoder(
        vocab_size=280, context_length=8, num_layers=1, dim=16, heads=2, outputs="hidden",
        pad_token=0,
    )  # fmt: skip
    vectors = sentence_vectors(
        ModelEngine.wrap(encoder, spec_of(tokenizer, 8, pad_token=0)), ["", "the cat"]
    )
    assert vectors[0].tolist() == [0.0] * 16
    torch.testing.assert_close(vectors[1].norm(), torch.tensor(1.0))
