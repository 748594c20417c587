"""Tokens hidden for masked language modelling.

Paper: Devlin et al. 2018, arXiv 1810.04805, section 3.1 and appendix C.1: 15 % of the tokens are
chosen; of these 80 % become the mask token, 10 % another token, 10 % stay. Whole words: the
authors' later code; a word is chosen or not with all its tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepseek.datasets.randomness import uniforms

SHARE, MASKED, REPLACED = 0.15, 0.8, 0.1
IGNORE_INDEX = -100


@dataclass(frozen=True)
class TokenMasking:
    """Hides tokens, by random numbers that depend on where they are used alone.

    Attributes:
        mask_token: what a hidden token becomes.
        replacements: tokens that may stand in the place of a chosen one.
        continues_word: whether each token of the vocabulary goes on with a word, bool (V,); `None`
            chooses token by token.
    """

    mask_token: int
    replacements: np.ndarray
    continues_word: np.ndarray | None = None

    def hide(self, tokens: np.ndarray, parts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens (T,) with some hidden, and targets (T,): the chosen ones, -100 elsewhere.

        At least one token is chosen.

        Args:
            tokens: at least one, none of them special.
            parts: what the choice depends on, such as (seed, epoch, index).
        """
        chosen = self._choose(tokens, parts)
        fate = uniforms(len(tokens), *parts, 1)
        drawn = uniforms(len(tokens), *parts, 2)
        other = self.replacements[(drawn * len(self.replacements)).astype(np.int64)]
        inputs = np.where(chosen & (fate < MASKED), self.mask_token, tokens)
        is_replaced = chosen & (fate >= MASKED) & (fate < MASKED + REPLACED)
        inputs = np.where(is_replaced, other, inputs)
        return inputs, np.where(chosen, tokens, IGNORE_INDEX)

    def _choose(self, tokens: np.ndarray, parts: Sequence[int]) -> np.ndarray:
        count = max(1, round(SHARE * len(tokens)))
        if self.continues_word is None:
            chosen = np.zeros(len(tokens), bool)
            chosen[np.argsort(uniforms(len(tokens), *parts, 0))[:count]] = True
            return chosen
        begins = ~self.continues_word[tokens]
        begins[0] = True
        word_of = np.cumsum(begins) - 1
        sizes = np.bincount(word_of)
        order = np.argsort(uniforms(len(sizes), *parts, 0))
        fits = np.cumsum(sizes[order]) <= count
        fits[0] = True  # one long word may be more than the share
        return np.isin(word_of, order[fits])
