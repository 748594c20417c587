"""Models of transformers, built with fresh weights and asked for logits."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from deepseek.registry import import_extra


def build_transformers(values: Mapping[str, Any], **options: object) -> nn.Module:
    """Return a model of transformers.

    Args:
        values: of a `config.json`; `architectures` and `model_type` say which classes.
        options: of the model's class.
    """
    transformers = import_extra("transformers", "text")
    settings = dict(values)
    name = settings.pop("architectures")[0]
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    return getattr(transformers, name)(config, **options)


def causal_logits(module: nn.Module, inputs: Tensor, embedding: str) -> Tensor:
    """Return the logits of a decoder, with a head or without.

    Args:
        module: of transformers.
        inputs: tokens (B, T).
        embedding: name of the embedding, whose weight is the head's where there is none.
    """
    found = module(inputs)
    if isinstance(found, Tensor):  # a class of the user's own around the backbone
        return found
    if "logits" in found:
        return found.logits
    table: Any = module.get_submodule(embedding)
    return found.last_hidden_state @ table.weight.t()
