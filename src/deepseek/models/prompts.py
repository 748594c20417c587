"""From what a user has (text, token ids) to rows of tokens for a decoder, and back to text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from deepseek.datasets.tokenizer import Tokenizer
from deepseek.errors import ConfigError
from deepseek.models.decoder import Decoder
from deepseek.models.eval_mode import each_evaluating
from deepseek.models.generation import generate_tokens, make_sampling

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
NUM_BEFORE = 4
"""Tokens that others are decoded behind: some, as special ones have no text."""
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
    """From text to tokens and back: by a tokenizer, else character by character.

    Args:
        names: of each token, in order; empty where they are unknown.
        tokenizer: of the model, if it has one.
    """

    def __init__(self, names: Sequence[str], tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer = tokenizer
        self._names = tokenizer.vocabulary if tokenizer is not None else tuple(names)
        self._ids = {name: number for number, name in enumerate(self._names)}

    def encode(self, prompt: Prompt) -> list[int]:
        """Return token ids.

        Raises:
            ConfigError: text has a character that is no token, or ids are no whole numbers.
        """
        if isinstance(prompt, str) and self._tokenizer is not None:
            return self._tokenizer.encode([prompt], is_whole=False)[0].tolist()
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

    def decode(self, tokens: Sequence[int], before: Sequence[int] = ()) -> str | None:
        """Return the text that tokens add to those before them, if it is known.

        Decoders of words leave out the blank that a text begins with, so it matters what is before.
        """
        if self._tokenizer is not None:
            last = [*before][-NUM_BEFORE:]
            start, text = self._tokenizer.decode(last), self._tokenizer.decode([*last, *tokens])
            if text.startswith(start):
                return text[len(start) :]
            return self._tokenizer.decode(tokens)  # the first ends a letter of those before
        if not self._names:
            return None
        return "".join(self._names[token] for token in tokens)

    def decode_each(self, tokens: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
        """Return the text that each token adds; nothing yet where a letter is in several tokens.

        What never became a whole letter comes last, as `decode` spells it.
        """
        seen: list[int] = []
        shown = text = ""
        for token in tokens:
            seen.append(token)
            text = self.decode(seen, before) or ""
            if not text.endswith(INCOMPLETE):
                yield text[len(shown) :]
                shown = text
        if text != shown:
            yield text[len(shown) :]


def is_single(prompts: Prompt | Sequence[Prompt]) -> bool:
    """Return whether this is one prompt and not a list of them."""
    if isinstance(prompts, str):
        return True
    if isinstance(prompts, Tensor):
        return prompts.ndim < 2
    return bool(prompts) and isinstance(prompts[0], int)


class Writer:
    """Continues prompts with a decoder.

    Args:
        model: the decoder.
        vocabulary: of its tokens.
        compiles: compile the step of one token for each prompt.
    """

    def __init__(self, model: Decoder, vocabulary: Vocabulary, *, compiles: bool) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._compiles = compiles

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: int | None,
        stop: Sequence[str | int] | str | int,
        options: Mapping[str, Any],
    ) -> Generation | list[Generation]:
        """Return what comes after a prompt, or after each of a list."""
        if prompts is None:
            raise ConfigError("there is no prompt", fix="give text or token ids")
        is_one = is_single(prompts)
        given = cast(list[Prompt], [prompts] if is_one else list(prompts))
        rows = [self._vocabulary.encode(prompt) for prompt in given]
        found: list[list[int]] = [[] for _ in rows]
        has_stopped = [False] * len(rows)
        for drawn in self._draw(rows, max_new_tokens, stop, options):
            for row, token in enumerate(drawn):
                if token is None:
                    has_stopped[row] = True
                else:
                    found[row].append(token)
        made = [
            Generation(tokens, self._vocabulary.decode(tokens, row), stopped)
            for row, tokens, stopped in zip(rows, found, has_stopped, strict=True)
        ]
        return made[0] if is_one else made

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int | None,
        stop: Sequence[str | int] | str | int,
        options: Mapping[str, Any],
    ) -> Iterator[str | int]:
        """Return each token as soon as it is drawn, as text where the prompt is text."""
        before = self._vocabulary.encode(prompt)
        drawn = self._draw([before], max_new_tokens, stop, options)
        tokens = (row[0] for row in drawn if row[0] is not None)
        if not isinstance(prompt, str):
            return tokens
        return self._vocabulary.decode_each(tokens, before)

    def _stop_tokens(self, stop: Sequence[str | int] | str | int) -> list[int]:
        # a text alone is one token, not its characters
        tokens = [stop] if isinstance(stop, str | int) else stop
        ids = [self._vocabulary.id_of(token) for token in tokens]
        count = self._model.config["num_classes"] or 0
        for token in ids:
            if not 0 <= token < count:
                raise ConfigError(
                    f"stop has token {token}, the vocabulary {count} tokens",
                    fix="leave it out: it would never be drawn",
                )
        return ids

    def _draw(
        self,
        rows: Sequence[list[int]],
        max_new_tokens: int | None,
        stop: Sequence[str | int] | str | int,
        options: Mapping[str, Any],
    ) -> Iterator[list[int | None]]:
        sampling = make_sampling(options, self._stop_tokens(stop))
        drawn = generate_tokens(
            self._model, rows, max_new_tokens=max_new_tokens, sampling=sampling,
            compiles=self._compiles,
        )  # fmt: skip
        return each_evaluating(self._model, drawn)
