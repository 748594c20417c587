"""From what a user has (text, token ids) to rows of tokens for a decoder, and back to text."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from deepseek.errors import ConfigError

Prompt = str | Sequence[int] | Tensor
"""Text, or token ids of shape (T,)."""


@dataclass(frozen=True)
class Generation:
    """What a decoder wrote after one prompt.

    Attributes:
        tokens: the new tokens, without the one that stopped it.
        text: the same as text; `None` where the text of the tokens is unknown.
        has_stopped: whether a stop token ended it, and not the number of tokens.
    """

    tokens: list[int]
    text: str | None
    has_stopped: bool


class Vocabulary:
    """The text of each token, where a text's characters are its tokens.

    Args:
        names: of each token, in order; empty where they are unknown.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._ids = {name: number for number, name in enumerate(self._names)}

    def encode(self, prompt: Prompt) -> list[int]:
        """Return token ids.

        Raises:
            ConfigError: text has a character that is no token, or ids are no whole numbers.
        """
        if isinstance(prompt, str):
            return [self.id_of(character) for character in prompt]
        ids = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
        if any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
            raise ConfigError(
                f"a prompt is no row of token ids: {str(prompt)[:60]}",
                fix="give text, a list of whole numbers, or an integer tensor (T,)",
            )
        return ids

    def id_of(self, token: str | int) -> int:
        """Return the id of a token that is given by its text or its id.

        Raises:
            ConfigError: there is no such token.
        """
        if isinstance(token, int):
            return token
        if token not in self._ids:
            known = f"{len(self._names)} tokens, not with {token!r}" if self._names else "none"
            raise ConfigError(
                f"the vocabulary that the model was trained with has {known}",
                fix="give token ids, or text of the characters that it was trained on",
            )
        return self._ids[token]

    def decode(self, tokens: Sequence[int]) -> str | None:
        """Return the text of tokens, if it is known."""
        if not self._names:
            return None
        return "".join(self._names[token] for token in tokens)


def is_single(prompts: Prompt | Sequence[Prompt]) -> bool:
    """Return whether this is one prompt and not a list of them."""
    if isinstance(prompts, str):
        return True
    if isinstance(prompts, Tensor):
        return prompts.ndim < 2
    return bool(prompts) and isinstance(prompts[0], int)
