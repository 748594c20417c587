"""What the rows of new tokens begin with: sums of rows that the model has learnt.

- mean: of the tokens that stood for it (Hong et al. 2021, AVocaDo, arXiv 2110.13434, and others).
- auxiliary: of the tokens whose word vectors are most similar to its own, in another space such as
  GloVe's, with weights from sparsemax over the cosines (Dobler & de Melo 2023, FOCUS, arXiv
  2305.14481; sparsemax: Martins & Astudillo 2016, arXiv 1602.02068). Departures: the space is a
  file of word vectors that exists, rather than one trained for the purpose; a term that the file
  lacks takes the mean.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deepseek.datasets.text_numbers import read_number
from deepseek.datasets.tokenizer import Tokenizer
from deepseek.errors import DataError

Sums = dict[int, dict[int, float]]
MAX_SIMILAR = 64


def mean_of_parts(parts: Mapping[int, tuple[int, ...]]) -> Sums:
    """Return each token as the mean of the tokens that stood for it."""
    sums: Sums = {}
    for token, pieces in parts.items():
        sums[token] = {}
        for piece in pieces:
            # a piece that is new as well is the sum that it was given before
            for old, share in sums.get(piece, {piece: 1.0}).items():
                sums[token][old] = sums[token].get(old, 0.0) + share / len(pieces)
    return sums


def similar_tokens(
    parts: Mapping[int, tuple[int, ...]],
    old: Tokenizer,
    grown: Tokenizer,
    vectors: Mapping[str, np.ndarray],
) -> Sums:
    """Return each token as a weighted sum of the tokens of similar meaning.

    Args:
        parts: new token -> those that stood for it.
        old: the former tokenizer.
        grown: the one with the new tokens.
        vectors: word -> vector (D,), as `read_vectors` returns them.
    """
    sums = mean_of_parts(parts)
    known = [(n, word) for n, word in enumerate(map(as_word, old.vocabulary)) if word in vectors]
    if not known:
        return sums
    space = np.stack([vectors[word] for _, word in known if word is not None])
    space = space / np.maximum(np.linalg.norm(space, axis=1, keepdims=True), 1e-12)
    for token in parts:
        word = as_word(grown.vocabulary[token])
        if word not in vectors or word is None:
            continue
        vector = vectors[word] / max(float(np.linalg.norm(vectors[word])), 1e-12)
        cosines = space @ vector
        nearest = np.argsort(-cosines, kind="stable")[:MAX_SIMILAR]
        weights = sparsemax(cosines[nearest])
        sums[token] = {
            known[place][0]: float(weight)
            for place, weight in zip(nearest.tolist(), weights, strict=True)
            if weight > 0
        }
    return sums


def as_word(text: str) -> str | None:
    """Return the word that a token of a vocabulary stands for, lower-case; `None` for a part."""
    if text.startswith(("##", "[", "<")):
        return None
    word = text.removeprefix("Ġ").removeprefix("▁").lstrip("$#").lower()
    return word or None


def sparsemax(scores: np.ndarray) -> np.ndarray:
    """Return the point of the simplex nearest to scores (N,): shares, most of them 0."""
    ordered = np.sort(scores)[::-1].astype(np.float64)
    sums = np.cumsum(ordered)
    counts = np.arange(1, len(ordered) + 1)
    size = int(counts[1 + counts * ordered > sums].max())
    return np.maximum(scores - (sums[size - 1] - 1) / size, 0.0)


def read_vectors(path: str | os.PathLike, words: set[str]) -> dict[str, np.ndarray]:
    """Return the vectors of some words from a text file as GloVe's: a word and its numbers a line.

    Args:
        path: the file; a first line of two numbers, as word2vec's files have, is passed over. The
            word of the first line has no blanks; those of others may.
        words: those that are wanted, lower-case.

    Raises:
        DataError: the file cannot be read, or a line has fewer numbers than the first.
    """
    found: dict[str, np.ndarray] = {}
    size = 0
    try:
        with open(Path(path).expanduser(), encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                fields = line.rstrip().split(" ")
                if number == 1 and len(fields) == 2:
                    continue
                size = size or len(fields) - 1
                if len(fields) <= size:
                    raise DataError(
                        f"{path}, line {number}: {len(fields) - 1} numbers, {size} before",
                        fix="get the file again",
                    )
                # some words of GloVe's largest file have blanks, such as ". . ."
                word = " ".join(fields[:-size])
                if word in words:
                    found[word] = np.array(
                        [read_number(each) for each in fields[-size:]], np.float32
                    )
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} cannot be read as word vectors: {error}", fix="give a file such as GloVe's"
        ) from error
    return found
