"""Texts that a user has -> batches of tokens, as the model was trained on.

Shapes: B batch, T tokens.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from torch import Tensor

from deepseek.datasets.padding import frame_and_pad
from deepseek.datasets.spec import DataSpec
from deepseek.datasets.tokenizer import Tokenizer
from deepseek.errors import ConfigError


def text_batches(x: object, spec: DataSpec, batch_size: int) -> tuple[Iterator[Tensor], bool]:
    """Cut a text, or a list of texts, into batches (B, T), tokenised when their turn comes.

    Returns:
        The batches, and whether `x` was a single text.

    Raises:
        ConfigError: `x` is something else, or the model does not classify texts.
    """
    if spec.task != "sequence_classification":
        raise ConfigError(
            f"predict takes texts for models that classify them, not for {spec.task}",
            fix="give tokens as a tensor (B, T) to the model itself; for a vector of each text"
            " deepseek.models.sentence_vectors, to go on with a text engine.generate",
        )
    if isinstance(x, str):
        return encode_texts([x], spec, batch_size), True
    if isinstance(x, list | tuple) and all(isinstance(text, str) for text in x):
        return encode_texts(x, spec, batch_size), False
    raise ConfigError(
        f"x is a {type(x).__name__}, which cannot be predicted by a model of text",
        fix="give a text, a list of texts, or tokens as a tensor (B, T)",
    )


def encode_texts(texts: Sequence[str], spec: DataSpec, batch_size: int) -> Iterator[Tensor]:
    """Yield texts as batches of tokens (B, T), framed, cut and filled up as in training."""
    tokenizer = tokenizer_of(spec.tokenizer or "")
    length = spec.fields["inputs"].shape[0]
    for start in range(0, len(texts), batch_size):
        rows = tokenizer.encode(texts[start : start + batch_size], is_whole=False)
        yield frame_and_pad(rows, tokenizer.frame, length, spec.pad_token or 0)


@lru_cache(maxsize=4)
def tokenizer_of(content: str) -> Tokenizer:
    """Return the tokenizer of a data spec, from its JSON text."""
    return Tokenizer(content, "the tokenizer of the model")
