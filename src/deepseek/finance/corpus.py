"""Unlabelled text: a path, or the texts themselves."""

import os
from collections.abc import Iterable
from typing import Literal, cast

from deepseek.datasets import read_texts
from deepseek.datasets.randomness import permutation
from deepseek.errors import ConfigError, DataError

Corpus = str | os.PathLike | Iterable[str]


def read_corpus(
    corpus: Corpus,
    *,
    text_column: str | int = "text",
    document_per: Literal["file", "paragraph", "line"] = "line",
    encoding: str = "utf-8",
) -> list[str]:
    """Return the texts of a corpus that are not empty.

    Args:
        corpus: a path as `TextDataset` takes it, or texts.
        text_column: of tables.
        document_per: what a text is in a `.txt` file.
        encoding: of `.txt`, `.csv` and `.tsv` files.

    Raises:
        DataError: there are none.
    """
    if isinstance(corpus, str | os.PathLike):
        texts: Iterable[str] = read_texts(
            corpus, text_column, document_per=document_per, encoding=encoding
        )
    else:
        texts = cast(Iterable[str], corpus)
    found = [text for text in texts if text and not text.isspace()]
    if not found:
        raise DataError("the corpus holds no text", fix="check the path, and text_column")
    return found


def hold_out(texts: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Return (texts to train with, a share of texts drawn by the seed), equal texts together.

    Raises:
        ConfigError: the share is not in (0, 1).
        DataError: a part would be empty.
    """
    if not 0 < share < 1:
        raise ConfigError(f"held_out={share} is not between 0 and 1", fix="give a share like 0.05")
    different = list(dict.fromkeys(texts))
    count = max(1, round(share * len(different)))
    if len(different) < 2:
        raise DataError("the corpus is one text, so none can be held out", fix="give more texts")
    chosen = {different[n] for n in permutation(len(different), seed, 0)[:count].tolist()}
    return [text for text in texts if text not in chosen], [t for t in different if t in chosen]


def take_share(texts: list[str], num_letters: int, seed: int) -> list[str]:
    """Return texts drawn by the seed, about so many letters of them; all if there are fewer."""
    taken, length = [], 0
    for number in permutation(len(texts), seed, 1).tolist():
        if length >= num_letters:
            break
        taken.append(texts[number])
        length += len(texts[number])
    return taken
