"""What a model must agree on with the text it learns from: vocabulary, padding, documents."""

import json

from torch import nn

from deepseek.datasets.spec import DataSpec
from deepseek.errors import ConfigError
from deepseek.models.classifier import Classifier
from deepseek.models.encoder import Encoder
from deepseek.models.gpt import GPT
from deepseek.models.multi_head import MultiHead
from deepseek.models.pretrained import PretrainedLogits


def bind_text(module: nn.Module, spec: DataSpec) -> None:
    """Let a model of ours, or a trunk of transformers, agree with the text it is to learn from.

    Raises:
        ConfigError: it cannot.
    """
    trunk = module.trunk if isinstance(module, MultiHead) else module
    if isinstance(trunk, PretrainedLogits):
        trunk.bind(spec)
    check_tokens(trunk, spec)
    if spec.document_token is not None:
        keep_documents_apart(trunk, spec.document_token)
    if spec.separator_token is not None and isinstance(trunk, Encoder):
        trunk.separate_types(spec.separator_token)
        if isinstance(module, MultiHead):
            module.note_trunk()


def has_tokenizer_of(known: DataSpec | None, spec: DataSpec) -> bool:
    """Return whether a model of `known` makes tokens from text as the data do."""
    return known is not None and known.tokenizer is not None and known.tokenizer == spec.tokenizer


def check_tokens(module: nn.Module, spec: DataSpec) -> None:
    """Check that a model of ours has a place for every token, and takes padding for padding.

    Raises:
        ConfigError: it has not, or does not.
    """
    if spec.tokenizer is None or not isinstance(module, Classifier):
        return
    length, longest = spec.fields["inputs"].shape[0], module.config.get("context_length")
    if isinstance(longest, int) and length > longest:
        raise ConfigError(
            f"the data has sequences of {length} tokens, the model context_length={longest}",
            fix="lower sequence_length of the data, or raise context_length of the model",
        )
    vocab_size = module.config.get("vocab_size")
    if vocab_size is not None and (used := count_tokens(spec.tokenizer)) > vocab_size:
        raise ConfigError(
            f"the tokenizer has {used} tokens, the model vocab_size={vocab_size}",
            fix=f"build the model with vocab_size={used}, or choose another tokenizer",
        )
    if "pad_token" in module.config and module.config["pad_token"] != spec.pad_token:
        raise ConfigError(
            f"sequences are filled up with token {spec.pad_token}, the model has"
            f" pad_token={module.config['pad_token']}",
            fix=f"build the model with pad_token={spec.pad_token}",
        )


def keep_documents_apart(module: nn.Module, document_token: int) -> None:
    """Let no token see documents before its own.

    Raises:
        ConfigError: the model cannot.
    """
    if not isinstance(module, GPT):
        raise ConfigError(
            f"attend_across_documents=False, and {type(module).__name__} lets a token see all"
            " before it",
            fix="train a GPT, or set attend_across_documents to True",
        )
    module.separate_documents(document_token)


def count_tokens(tokenizer: str) -> int:
    """Return how many numbers a tokenizer uses, from its JSON text."""
    content = json.loads(tokenizer)
    vocabulary = content["model"]["vocab"]
    numbers = list(vocabulary.values()) if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = [token["id"] for token in content.get("added_tokens", ())]
    return max([-1, *numbers, *added]) + 1
