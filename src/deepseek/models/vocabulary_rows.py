"""The rows of a model that stand for tokens: how many there are, and what they hold.

An `Encoder` has as many as its `vocab_size`; decoders fill theirs up to a multiple of 64. A weight
that embedding and head share is one tensor here.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.decoder import Decoder
from deepseek.models.encoder import Encoder
from deepseek.models.engine import ModelEngine


def vocabulary_rows(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights with a row for each token, by name; a shared one once.

    Raises:
        ConfigError: the model is no `Encoder` or decoder with a vocabulary.
    """
    if isinstance(module, Encoder):
        found = {"embedding.tok_embed.weight": module.embedding.tok_embed.weight}
        if module.config["outputs"] == "vocabulary" and module.head is not None:
            found |= {"head.weight": module.head.weight, "head.bias": module.head.bias}
    elif isinstance(module, Decoder) and module.tok_embed is not None and module.head is not None:
        found = {"tok_embed.weight": module.tok_embed.weight, "head.weight": module.head.weight}
    else:
        raise ConfigError(
            f"{type(module).__name__} has no vocabulary that could grow",
            fix="give an encoder, a gpt or a llama, with its vocabulary",
        )
    by_identity = {id(weight): name for name, weight in reversed(found.items())}
    return {name: weight for name, weight in found.items() if by_identity[id(weight)] == name}


def count_rows(engine: ModelEngine) -> int:
    """Return how many tokens the model has a place for."""
    vocabulary_rows(engine.module)
    name = "vocab_size" if isinstance(engine.module, Encoder) else "num_classes"
    return engine.config[name]


def with_more_rows(engine: ModelEngine, num_tokens: int) -> ModelEngine:
    """Return a copy of a model with a place for more tokens; the new rows are zero.

    Args:
        engine: an encoder or a decoder; it is not changed, and the copy has no spec.
        num_tokens: tokens of the larger vocabulary.

    Raises:
        ConfigError: the model has no vocabulary, has more tokens, or was cut or quantised.
    """
    known = count_rows(engine)
    if num_tokens < known:
        raise ConfigError(
            f"num_tokens={num_tokens} is below the {known} of the model",
            fix="give a larger vocabulary",
        )
    if engine.changes:
        raise ConfigError(
            "the model was cut or quantised, and its vocabulary cannot grow any more",
            fix="grow the original, then cut or quantise it again",
        )
    config = {name: value for name, value in engine.config.items() if name != "num_classes"}
    num_classes = engine.config["num_classes"]
    if isinstance(engine.module, Encoder):
        is_vocabulary = config["outputs"] == "vocabulary"
        config["vocab_size"] = num_tokens
        num_classes = num_tokens if is_vocabulary else num_classes
    else:
        num_classes = num_tokens
    grown = ModelEngine(engine.architecture, num_classes=num_classes, **config)
    grown._head_is_lent = isinstance(grown.module, Decoder)  # a tokenizer may fill fewer rows
    weight = next(engine.parameters())
    grown.to(weight.device, weight.dtype).train(engine.training)
    own, old = grown.module.state_dict(), engine.module.state_dict()
    rows = vocabulary_rows(grown.module)
    with torch.no_grad():
        for name in old:
            if name not in rows and own[name].shape == old[name].shape:
                own[name].copy_(old[name])
        for name in rows:  # last: a shared weight has another name among those above
            own[name].zero_()
            own[name][:known] = old[name][:known]
    return grown


def fill_rows(module: nn.Module, values: Mapping[int, Mapping[int, float]]) -> None:
    """Set rows to weighted sums of other rows, in every weight of the vocabulary.

    Args:
        module: an encoder or a decoder.
        values: token -> {token of the sum: its share}. What is summed are the rows as they were.
    """
    with torch.no_grad():
        for weight in vocabulary_rows(module).values():
            found = [
                torch.stack([share * weight[token].float() for token, share in sum_of.items()])
                for sum_of in values.values()
            ]
            for token, parts in zip(values, found, strict=True):
                weight[token] = parts.sum(0).to(weight.dtype)


def draw_rows(module: nn.Module, tokens: Sequence[int], num_known: int, seed: int = 0) -> None:
    """Draw rows from a normal distribution with mean and covariance of the others.

    Hewitt 2021, "Initializing new word embeddings for pretrained language models".

    Args:
        module: an encoder or a decoder.
        tokens: whose rows are drawn.
        num_known: the rows before this one are those that the distribution is taken from.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    known = torch.ones(num_known, dtype=torch.bool)
    known[[token for token in tokens if token < num_known]] = False
    with torch.no_grad():
        for weight in vocabulary_rows(module).values():
            rows = weight.detach().cpu()[:num_known][known].double().reshape(int(known.sum()), -1)
            mean, factor = _distribution_of(rows)
            noise = torch.randn(
                len(tokens), rows.shape[1], generator=generator, dtype=torch.float64
            )
            drawn = (mean + noise @ factor.T).reshape(len(tokens), *weight.shape[1:])
            weight[list(tokens)] = drawn.to(weight)


def _distribution_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and a factor L (D, D) of the covariance L L^T of rows (N, D)."""
    covariance = torch.atleast_2d(torch.cov(rows.T))
    # the covariance of few rows is singular: a little of its own size keeps it decomposable
    ridge = 1e-6 * covariance.diagonal().mean() + 1e-12
    eye = torch.eye(rows.shape[1], dtype=rows.dtype)
    return rows.mean(0), torch.linalg.cholesky(covariance + ridge * eye)
