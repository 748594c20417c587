"""Tokens hidden for masked language modelling.

Paper: Devlin et al. 2018, arXiv 1810.04805, section 3.1 and appendix C.1: 15 % of the tokens are
chosen; of these 80 % become the mask token, 10 % another token, 10 % stay. Whole words: the
authors' later code; a word is chosen or not with all its tokens. Spans: Joshi et al. 2019
(SpanBERT), arXiv 1907.10529, section 3.1: runs of whole words, their number geometric with p = 0.2
and at most 10, and all tokens of a run share their fate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepseek.datasets.randomness import uniforms

SHARE, MASKED, REPLACED = 0.15, 0.8, 0.1
SPAN_END, MAX_SPAN_WORDS = 0.2, 10
IGNORE_INDEX = -100


@dataclass(frozen=True)
class TokenMasking:
    """Hides tokens, by random numbers that depend on where they are used alone.

    Attributes:
        mask_token: what a hidden token becomes.
        replacements: tokens that may stand in the place of a chosen one.
        continues_word: whether each token of the vocabulary goes on with a word, bool (V,); `None`
            chooses token by token.
        share: of the tokens that are chosen, in (0, 1).
        in_spans: choose runs of words; needs `continues_word`.
        special_tokens: that stand between texts and are never chosen.
    """

    mask_token: int
    replacements: np.ndarray
    continues_word: np.ndarray | None = None
    share: float = SHARE
    in_spans: bool = False
    special_tokens: np.ndarray | None = None

    def hide(self, tokens: np.ndarray, parts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens (T,) with some hidden, and targets (T,): the chosen ones, -100 elsewhere.

        At least one token is chosen, if there is one that is not special.

        Args:
            tokens: at least one.
            parts: what the choice depends on, such as (seed, epoch, index).
        """
        chosen, unit_of = self._choose(tokens, parts)
        fate = uniforms(len(tokens), *parts, 1)[unit_of]
        drawn = uniforms(len(tokens), *parts, 2)
        other = self.replacements[(drawn * len(self.replacements)).astype(np.int64)]
        inputs = np.where(chosen & (fate < MASKED), self.mask_token, tokens)
        is_replaced = chosen & (fate >= MASKED) & (fate < MASKED + REPLACED)
        inputs = np.where(is_replaced, other, inputs)
        return inputs, np.where(chosen, tokens, IGNORE_INDEX)

    def _choose(self, tokens: np.ndarray, parts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return which tokens are chosen, and the number by which each one's fate is drawn."""
        everything = np.arange(len(tokens))
        places = everything
        if self.special_tokens is not None:
            places = np.flatnonzero(~np.isin(tokens, self.special_tokens))
        chosen = np.zeros(len(tokens), bool)
        if not len(places):
            return chosen, everything
        count = max(1, round(self.share * len(places)))
        if self.continues_word is None:
            chosen[places[np.argsort(uniforms(len(places), *parts, 0))[:count]]] = True
            return chosen, everything
        begins = ~self.continues_word[tokens[places]]
        begins[0] = True
        begins[1:] |= np.diff(places) > 1  # a word does not reach over the end of a text
        word_of = np.cumsum(begins) - 1
        sizes = np.bincount(word_of)
        if self.in_spans:
            first = np.flatnonzero(begins)
            ends_text = np.append(np.diff(places)[first[1:] - 1] > 1, True)
            span_of_word = _choose_spans(sizes, ends_text, count, parts)
            span_of = span_of_word[word_of]
            chosen[places] = span_of >= 0
            unit_of = everything.copy()
            unit_of[places[span_of >= 0]] = span_of[span_of >= 0]
            return chosen, unit_of
        order = np.argsort(uniforms(len(sizes), *parts, 0))
        fits = np.cumsum(sizes[order]) <= count
        fits[0] = True  # one long word may be more than the share
        chosen[places] = np.isin(word_of, order[fits])
        return chosen, everything


def _choose_spans(
    sizes: np.ndarray, ends_text: np.ndarray, count: int, parts: Sequence[int]
) -> np.ndarray:
    """Return the number of the span that each word is of, -1: of none.

    Args:
        sizes: tokens of each word, (W,).
        ends_text: whether a text ends with a word, (W,).
        count: tokens that are to be chosen.
        parts: what the choice depends on.
    """
    span_of = np.full(len(sizes), -1)
    order = np.argsort(uniforms(len(sizes), *parts, 0))
    lengths = 1 + np.floor(np.log1p(-uniforms(len(sizes), *parts, 3)) / np.log1p(-SPAN_END)).astype(
        np.int64
    )
    left = count
    for number, start in enumerate(order.tolist()):
        word, end = start, start + min(int(lengths[number]), MAX_SPAN_WORDS)
        while word < min(end, len(sizes)) and span_of[word] < 0:
            if sizes[word] > left and left < count:
                break
            span_of[word] = number
            left -= int(sizes[word])
            if ends_text[word] or left <= 0:
                break
            word += 1
        if left <= 0:
            break
    return span_of
