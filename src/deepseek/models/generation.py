"""Text, token by token, from a decoder: each token is drawn from what the model says comes next.

Papers: Holtzman et al. 2020 (nucleus sampling: `top_p`), arXiv 1904.09751; Fan et al. 2018
(`top_k`), arXiv 1805.04833, section 5.4. Prompts of a batch begin together, whatever their lengths:
a row's tokens have the positions, and see the keys, that they would have alone.

Shapes: B rows, T tokens, K tokens of the vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.models.checks import check_positive
from deepseek.models.decoder import Decoder
from deepseek.models.kv_cache import KeyValueCache
from deepseek.registry import did_you_mean


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn.

    Attributes:
        temperature: what logits are divided by; 0 takes the most probable token.
        top_k: draw from the most probable so many; `None`: from all.
        top_p: draw from the most probable that together have this probability, in (0, 1].
        seed: of the draws: the same prompts, seed and machine give the same tokens.
        stop: tokens that end a row; they are not part of what is returned.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ConfigError(
                f"temperature={self.temperature} is not >= 0", fix="use 0 for no chance, or 1"
            )
        if self.top_k is not None:
            check_positive(top_k=self.top_k)
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} is not in (0, 1]", fix="use 1 for all tokens")

    def draw(self, logits: Float[Tensor, "B K"], generator: torch.Generator) -> Int[Tensor, "B"]:
        """Return one token for each row."""
        logits = logits.float()
        if self.temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial(self.probs(logits), 1, generator=generator)[:, 0]

    def probs(self, logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Return the probabilities that a token is drawn with; `temperature` is above 0."""
        logits = logits.float()
        # the largest becomes 0 first: a small temperature makes no number infinite
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        probs = logits.softmax(-1)
        if self.top_p == 1:
            return probs
        ordered, tokens = probs.sort(descending=True)
        # kept up to the one that reaches top_p, that one included
        is_late = ordered.cumsum(-1) - ordered >= self.top_p
        dropped = torch.zeros_like(is_late).scatter(-1, tokens, is_late)
        probs = probs.masked_fill(dropped, 0.0)
        return probs / probs.sum(-1, keepdim=True)


def make_sampling(options: Mapping[str, Any], stop: Sequence[int]) -> Sampling:
    """Return a `Sampling` of what a user wrote.

    Raises:
        ConfigError: an option is unknown or out of range.
    """
    known = [field.name for field in fields(Sampling) if field.name != "stop"]
    for name in options:
        if name not in known:
            raise ConfigError(
                f"unknown option {name}={options[name]!r} of generate",
                fix=did_you_mean(name, known),
            )
    return Sampling(**options, stop=tuple(stop))


def generate_tokens(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    compiles: bool = False,
) -> Iterator[list[int | None]]:
    """Return one token for every row at a time; `None` for a row that has ended.

    Args:
        model: in the mode `eval`, on its device.
        prompts: tokens of each row, of any lengths from 1 on.
        max_new_tokens: of each row; by default what is left of the context of the longest prompt.
        sampling: how tokens are drawn.
        compiles: compile the step of one token for each row, for these sizes.

    Raises:
        ConfigError: a prompt is empty, too long or not of the vocabulary.
    """
    sampling = sampling or Sampling()
    num_new = check_prompts(model, prompts, max_new_tokens)
    return _run(model, [list(map(int, prompt)) for prompt in prompts], num_new, sampling, compiles)


def check_prompts(
    model: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int | None
) -> int:
    """Return how many tokens a row may get.

    Raises:
        ConfigError: a prompt is empty, too long or not of the vocabulary.
    """
    num_classes = model.config["num_classes"]
    if num_classes is None:
        raise ConfigError(
            "the model has no vocabulary yet, so it cannot generate",
            fix="give num_classes, or train it first",
        )
    if not prompts:
        raise ConfigError("there are no prompts", fix="give at least one")
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ConfigError(f"prompt {row} is empty", fix="begin it with at least one token")
        wrong = [token for token in prompt if not 0 <= token < num_classes]
        if wrong:
            raise ConfigError(
                f"prompt {row} has token {wrong[0]}, the vocabulary {num_classes} tokens",
                fix="encode it with the vocabulary that the model was trained on",
            )
    longest = max(map(len, prompts))
    room = model.context_length - longest
    if room < 1 or (max_new_tokens is not None and max_new_tokens > room):
        wanted = "" if max_new_tokens is None else f" and max_new_tokens={max_new_tokens}"
        raise ConfigError(
            f"a prompt of {longest} tokens{wanted} do not fit context_length="
            f"{model.context_length}",
            fix="cut the prompt, or generate fewer tokens",
        )
    if max_new_tokens is None:
        return room
    check_positive(max_new_tokens=max_new_tokens)
    return max_new_tokens


def _run(
    model: Decoder, prompts: list[list[int]], num_new: int, sampling: Sampling, compiles: bool
) -> Iterator[list[int | None]]:
    device = model.norm.weight.device
    generator = torch.Generator(device).manual_seed(sampling.seed)
    step: Callable[..., Tensor] = torch.compile(_step) if compiles else _step
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = max(map(len, prompts))
    rows = [prompt + [prompt[-1]] * (longest - len(prompt)) for prompt in prompts]
    tokens = torch.tensor(rows, device=device)
    has_ended = [False] * len(prompts)
    # No mode is left on while the caller has its turn.
    with torch.no_grad():
        # the last token takes no slot: nothing comes after it
        cache = model.make_cache(len(prompts), longest + num_new - 1)
        positions = torch.arange(longest, device=device).expand(len(prompts), -1)
        x = model.run_cached(tokens, positions, cache, longest)
        last = x[torch.arange(len(prompts), device=device), lengths - 1]
        drawn = sampling.draw(model.classify(last[:, None])[:, 0], generator)
    for index in range(num_new):
        found = drawn.tolist()
        for row, token in enumerate(found):
            has_ended[row] = has_ended[row] or token in sampling.stop
        yield [None if ended else token for ended, token in zip(has_ended, found, strict=True)]
        if all(has_ended) or index == num_new - 1:
            return
        # Slots beyond the tokens so far are left out, but from a compiled step: it has one size.
        length = None if compiles else longest + index + 1
        with torch.no_grad():
            positions = (lengths + index)[:, None]
            logits = step(model, drawn[:, None], positions, cache, length)
            drawn = sampling.draw(logits, generator)


def _step(
    model: Decoder,
    tokens: Int[Tensor, "B 1"],
    positions: Int[Tensor, "B 1"],
    cache: KeyValueCache,
    length: int | None,
) -> Float[Tensor, "B K"]:
    return model.classify(model.run_cached(tokens, positions, cache, length))[:, -1]
