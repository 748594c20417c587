"""Texts that a user has -> batches of tokens, as the model was trained on.

Shapes: B batch, T tokens.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor

from deepseek.datasets.padding import frame_and_pad
from deepseek.datasets.spec import DataSpec
from deepseek.datasets.text_samples import cut_pair
from deepseek.datasets.tokenizer import Tokenizer
from deepseek.errors import ConfigError

TASKS = ("sequence_classification", "sequence_regression", "multi")
"""What `predict` is asked about texts for."""

Text = str | tuple[str, str]
"""A text, or two sentences."""


def text_batches(x: object, spec: DataSpec, batch_size: int) -> tuple[Iterator[Tensor], bool]:
    """Cut a text, or a list of texts, into batches (B, T), tokenised when their turn comes.

    Of a model of two sentences a text may be a pair of them.

    Returns:
        The batches, and whether `x` was a single text.

    Raises:
        ConfigError: `x` is something else, or the model does not classify texts.
    """
    if spec.task not in TASKS:
        raise ConfigError(
            f"predict takes texts for models that classify them, not for {spec.task}",
            fix="give tokens as a tensor (B, T) to the model itself; for a vector of each text"
            " deepseek.models.sentence_vectors, to go on with a text engine.generate",
        )
    if _is_text(x, spec):
        return encode_texts([x], spec, batch_size), True  # pyright: ignore[reportArgumentType]
    if isinstance(x, list | tuple) and all(_is_text(text, spec) for text in x):
        return encode_texts(x, spec, batch_size), False
    raise ConfigError(
        f"x is a {type(x).__name__}, which cannot be predicted by a model of text",
        fix="give a text, a list of texts, or tokens as a tensor (B, T)",
    )


def _is_text(x: object, spec: DataSpec) -> bool:
    is_pair = isinstance(x, tuple) and len(x) == 2 and all(isinstance(part, str) for part in x)
    return isinstance(x, str) or (spec.separator_token is not None and is_pair)


def encode_texts(texts: Sequence[Text], spec: DataSpec, batch_size: int) -> Iterator[Tensor]:
    """Yield texts as batches of tokens (B, T), framed, cut and filled up as in training."""
    tokenizer = tokenizer_of(spec.tokenizer or "")
    length = spec.fields["inputs"].shape[0]
    room = length - sum(map(len, tokenizer.frame))
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        rows = tokenizer.encode([t if isinstance(t, str) else t[0] for t in part], is_whole=False)
        for row, text in enumerate(part):
            if not isinstance(text, str):
                between = tokenizer.separator_token
                second = tokenizer.encode([text[1]], is_whole=False)[0]
                joined = np.concatenate([rows[row], [between], second])
                rows[row] = cut_pair(joined, between, room)
        yield frame_and_pad(rows, tokenizer.frame, length, spec.pad_token or 0)


def locate_words(text: str, spec: DataSpec) -> np.ndarray:
    """Return the words of a text, int64 (N, 3): first token in its row, start and end in the text.

    Words that do not fit the row are left out.
    """
    tokenizer = tokenizer_of(spec.tokenizer or "")
    numbers, places = tokenizer.locate(text)
    room = spec.fields["inputs"].shape[0] - sum(map(len, tokenizer.frame))
    words: list[list[int]] = []
    for at, (number, (start, end)) in enumerate(zip(numbers, places, strict=True)):
        if words and tokenizer.continues_word[number]:
            words[-1][2] = end
        elif at < room:
            words.append([at + len(tokenizer.frame[0]), start, end])
        else:
            break
    return np.array(words, np.int64).reshape(-1, 3)


@lru_cache(maxsize=4)
def tokenizer_of(content: str) -> Tokenizer:
    """Return the tokenizer of a data spec, from its JSON text."""
    return Tokenizer(content, "the tokenizer of the model")
