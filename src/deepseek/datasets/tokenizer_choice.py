"""The tokenizer that a data set is given, or that is made from its texts."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import xxhash

from deepseek.datasets.text_options import TextOptions
from deepseek.datasets.text_source import TextSource
from deepseek.datasets.tokenizer import (
    Tokenizer,
    load_tokenizer,
    make_character_tokenizer,
    train_tokenizer,
)
from deepseek.errors import DataError

TRAINED = ("bpe", "wordpiece")


def choose_tokenizer(
    given: Tokenizer | str | os.PathLike,
    source: TextSource,
    options: TextOptions,
    vocab_size: int,
    cache: Path | None,
    *,
    keeps_apart: bool = False,
) -> Tokenizer:
    """Return the tokenizer that was given, is at a path, or is made from the texts of a source.

    Args:
        given: a tokenizer, "characters", "bpe", "wordpiece", or a path.
        source: the texts.
        options: how the source is read.
        vocab_size: tokens at most, of one that is trained.
        cache: folder in which one that was trained is kept; `None`: nowhere.
        keeps_apart: whether there must be a token between documents.
    """
    if isinstance(given, Tokenizer):
        return given
    if given == "characters":
        letters: set[str] = set()
        num_texts = 0
        for text in _Texts(source):
            letters.update(text)
            num_texts += 1
        return make_character_tokenizer(letters, has_documents=keeps_apart or num_texts > 1)
    if given in TRAINED:
        return _train(str(given), source, options, vocab_size, cache)
    return load_tokenizer(given)


def make_tokenizer(kind: str, sources: Sequence[TextSource], vocab_size: int) -> Tokenizer:
    """Return a tokenizer that is made from the texts of several sources.

    Args:
        kind: "characters", "bpe" or "wordpiece".
        sources: the texts.
        vocab_size: tokens at most, of one that is trained.
    """
    texts = _Texts(*sources)
    if kind == "characters":
        return make_character_tokenizer({letter for text in texts for letter in text})
    return train_tokenizer(texts, kind, vocab_size)


def _train(
    kind: str, source: TextSource, options: TextOptions, vocab_size: int, cache: Path | None
) -> Tokenizer:
    if cache is None:
        return train_tokenizer(_Texts(source), kind, vocab_size)
    words = [kind, vocab_size, source.content_hash(), asdict(options)]
    key = xxhash.xxh3_128_hexdigest(json.dumps(words, sort_keys=True).encode())
    place = cache / f"{key}.tokenizer.json"
    if place.is_file():
        with suppress(DataError):  # a damaged one is made anew
            return load_tokenizer(place)
    tokenizer = train_tokenizer(_Texts(source), kind, vocab_size)
    with suppress(OSError):  # the tokens' own store says that the folder cannot be written
        cache.mkdir(parents=True, exist_ok=True)
        temporary = cache / f".{key}.{os.getpid()}"
        temporary.write_text(tokenizer.to_json(), encoding="utf-8")
        temporary.replace(place)
    return tokenizer


class _Texts:
    """The texts of sources, as often as they are asked for."""

    def __init__(self, *sources: TextSource) -> None:
        self._sources = sources

    def __iter__(self) -> Iterator[str]:
        for record in chain.from_iterable(self._sources):
            yield record.text if isinstance(record.text, str) else " ".join(record.text)
            if record.pair is not None:
                yield record.pair
