"""Shapes from a Hugging Face `config.json`, or from a table of sizes.

Only kinds of models that are known to be equal blocks of attention and one feed-forward network (or
equal experts) are taken: whatever else would silently be counted as another model.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from deepseek.errors import ConfigError
from deepseek.planner.shape import TransformerShape
from deepseek.registry import did_you_mean


class Kind(NamedTuple):
    """What the class of a model says, and its sizes do not.

    Attributes:
        is_gated: a gate beside the first projection.
        is_tied: embedding and head are one matrix, where the config does not say.
        has_biases: linears add one.
        has_positions: a learned embedding of positions.
        is_causal: tokens attend to those before them only.
        is_vision: its tokens are patches of a picture.
    """

    is_gated: bool = False
    is_tied: bool = False
    has_biases: bool = False
    has_positions: bool = False
    is_causal: bool = True
    is_vision: bool = False


_LLAMA, _GEMMA = Kind(is_gated=True), Kind(is_gated=True, is_tied=True)
_GPT2 = Kind(is_tied=True, has_biases=True, has_positions=True)
_ROTARY = Kind(has_biases=True)
_BERT = Kind(is_tied=True, has_biases=True, has_positions=True, is_causal=False)
_VIT = Kind(has_biases=True, has_positions=True, is_causal=False, is_vision=True)
KINDS = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"), _LLAMA),
    **dict.fromkeys(("phi3", "olmo", "olmo2", "granite"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "cohere", "smollm3"), _GEMMA),
    **dict.fromkeys(("gpt2", "gpt_neo", "opt"), _GPT2),
    **dict.fromkeys(("gpt_neox", "phi"), _ROTARY),
    "bloom": Kind(is_tied=True, has_biases=True),
    "starcoder2": Kind(is_tied=True, has_biases=True),
    **dict.fromkeys(("falcon", "mpt"), Kind(is_tied=True)),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "distilbert"), _BERT),
    **dict.fromkeys(("vit", "deit"), _VIT),
}
"""By `model_type`."""
_SIZES = {
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "dim": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocab_size": ("vocab_size",),
    "context_length": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
}
_HIDDEN = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim")
VISION_NOTE = "the projection of patches is costed in the place of logits"


def shape_from_huggingface(config: Mapping[str, Any], context_length: int = 0) -> TransformerShape:
    """The shape that a Hugging Face `config.json`, already parsed, describes.

    Args:
        config: its keys and values; `model_type` among them.
        context_length: tokens of a sequence in training; 0 for the longest the model allows.

    Raises:
        ConfigError: a size is missing, or the model is of a kind that the planner does not know.
    """
    name = str(config.get("model_type") or "")
    kind = _find_kind(config, name)
    given = {"context_length": context_length} if context_length else {}
    if kind.is_vision:
        given = _count_patches(config, name) | given
    sizes = {n: given.get(n) or _find_size(config, n, keys) for n, keys in _SIZES.items()}
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    hidden = _first(config, *_HIDDEN)
    if experts > 1 and config.get("moe_intermediate_size"):
        hidden = config["moe_intermediate_size"]
    return TransformerShape(
        name=str(config.get("_name_or_path") or name),
        **sizes,
        kv_heads=_find_kv_heads(config, sizes["heads"]),
        hidden_dim=int(hidden or 0),
        is_gated=kind.is_gated,
        # one matrix of patches, however words are dealt with
        is_tied=kind.is_vision or bool(config.get("tie_word_embeddings", kind.is_tied)),
        has_biases=kind.has_biases,
        has_positions=kind.has_positions,
        is_causal=kind.is_causal,
        dropout=_has_dropout(config),
        head_dim=int(config.get("head_dim") or 0),
        num_experts=int(experts),
        active_experts=int(config.get("num_experts_per_tok") or 1) if experts > 1 else 1,
    )


def is_vision(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is of a model of pictures."""
    kind = KINDS.get(str(config.get("model_type", "")))
    return kind is not None and kind.is_vision


def _find_kind(config: Mapping[str, Any], name: str) -> Kind:
    if name in KINDS and not config.get("is_encoder_decoder"):
        return KINDS[name]
    close = did_you_mean(name, KINDS) if name else "add model_type"
    raise ConfigError(
        f"config.json has model_type={name or None!r}, which the planner does not know: it may not"
        " be built of equal blocks of attention and of one feed-forward network or equal experts.",
        fix=f"{close}; or give the sizes of a model that comes near it as a table; the memory of"
        " any model is predicted by deepseek train CONFIG --dry-run",
    )


def _count_patches(config: Mapping[str, Any], name: str) -> dict[str, int]:
    """Return tokens, and as many rows as a patch has numbers, in the place of a vocabulary."""
    image, patch = config.get("image_size", 224), config.get("patch_size", 16)
    if not isinstance(image, int) or not isinstance(patch, int) or image % patch:
        raise ConfigError(
            f"config.json has image_size={image!r} and patch_size={patch!r}: no whole number of"
            " square patches.",
            fix="give the sizes of the model as a table",
        )
    extra = 2 if name == "deit" else 1  # deit has a token of distillation, too
    rows = patch * patch * int(config.get("num_channels", 3))
    return {"context_length": (image // patch) ** 2 + extra, "vocab_size": rows}


def _first(config: Mapping[str, Any], *keys: str) -> Any:
    """The first value among `keys` that is there and not null."""
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _find_size(config: Mapping[str, Any], name: str, keys: tuple[str, ...]) -> int:
    value = _first(config, *keys)
    if value is None:
        raise ConfigError(
            f"config.json has none of {', '.join(keys)}, one of which is the model's {name}.",
            fix=f"add {keys[0]}, or give the sizes of the model as a table",
        )
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name}={value!r} in config.json is not one whole number.",
            fix="the planner takes models of equal blocks; give their sizes as a table",
        ) from error


def _find_kv_heads(config: Mapping[str, Any], heads: int) -> int:
    """Heads of keys and values; old Falcon says only that there is one."""
    value = _first(config, "num_key_value_heads", "num_kv_heads", "n_head_kv")
    if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture"):
        return 1 if config.get("multi_query", True) else heads
    return int(value or heads)


def _has_dropout(config: Mapping[str, Any]) -> bool:
    keys = ("resid_pdrop", "hidden_dropout_prob", "hidden_dropout", "dropout", "resid_dropout")
    return any(float(config.get(key) or 0) > 0 for key in keys)


def shape_from_table(table: Mapping[str, Any]) -> TransformerShape:
    """The shape with the fields in `table`, named as in `TransformerShape`.

    Raises:
        ConfigError: a field is unknown or one that has no default is missing.
    """
    known = {field.name: field for field in fields(TransformerShape)}
    unknown = [name for name in table if name not in known]
    needed = [name for name, field in known.items() if field.default is MISSING and name != "name"]
    missing = [name for name in needed if name not in table]
    if unknown or missing:
        raise ConfigError(
            f"sizes of a model: unknown={unknown}, missing={missing}.",
            fix=f"give {', '.join(needed)}, and of the others only {', '.join(known)}",
        )
    return TransformerShape(**{"name": "model", **table})
