"""Shapes from a Hugging Face `config.json`, or from a table of sizes."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from deepseek.errors import ConfigError
from deepseek.planner.shape import TransformerShape

_GATED = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "phi3")
_SIZES = {
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "dim": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocab_size": ("vocab_size",),
    "context_length": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
}
_STRANGE = (
    "is_encoder_decoder", "text_config", "vision_config", "n_routed_experts", "moe_num_experts",
    "kv_lora_rank", "num_hidden_groups", "attention_window", "attn_layer_period", "mamba_d_state",
    "mamba_d_conv", "layers_block_type", "hybrid_override_pattern", "conv_L_cache",
    "interleave_moe_layer_step",
)  # fmt: skip
"""Keys of models with a decoder beside, several parts, shared experts, latent attention, shared
layers, windows of their own, or layers without attention."""
_TIED_UNLESS_SAID = ("gpt2", "bert", "opt", "falcon", "gpt_neo", "gemma", "mpt", "roberta")


def shape_from_huggingface(config: Mapping[str, Any], context_length: int = 0) -> TransformerShape:
    """The shape that a Hugging Face `config.json`, already parsed, describes.

    Args:
        config: its keys and values; `model_type` among them.
        context_length: tokens of a sequence in training; 0 for the longest the model allows.

    Raises:
        ConfigError: a size is missing, or the model is built of what the planner does not know.
    """
    kind = str(config.get("model_type", ""))
    _check_kind(config, kind)
    sizes = {
        name: _find_size(config, name, keys)
        for name, keys in _SIZES.items()
        if not (name == "context_length" and context_length)
    }
    sizes["context_length"] = context_length or sizes["context_length"]
    is_gated = kind.startswith(_GATED) or str(config.get("hidden_act", "")) in ("silu", "swiglu")
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    hidden = _first(config, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
    if experts > 1 and config.get("moe_intermediate_size"):
        hidden = config["moe_intermediate_size"]
    return TransformerShape(
        name=str(config.get("_name_or_path") or kind or "model"),
        **sizes,
        kv_heads=_find_kv_heads(config, sizes["heads"]),
        hidden_dim=int(hidden or 0),
        is_gated=is_gated,
        is_tied=bool(config.get("tie_word_embeddings", kind.startswith(_TIED_UNLESS_SAID))),
        has_biases=not is_gated and kind != "falcon",
        has_positions=not is_gated and kind not in ("falcon", "gpt_neox", "mpt", "bloom"),
        is_causal=kind not in ("bert", "roberta", "vit"),
        dropout=_has_dropout(config),
        head_dim=int(config.get("head_dim") or 0),
        num_experts=int(experts),
        active_experts=int(config.get("num_experts_per_tok") or 1) if experts > 1 else 1,
    )


def _check_kind(config: Mapping[str, Any], kind: str) -> None:
    """Refuse what would silently be counted as another model."""
    strange = [key for key in _STRANGE if config.get(key)]
    if strange:
        raise ConfigError(
            f"config.json of {kind or 'a model'} has {', '.join(strange)}: it is not built of equal"
            " blocks of attention and of one feed-forward network or equal experts.",
            fix="give the sizes of a model that comes near it as a table; the memory of this one is"
            " predicted by deepseek train CONFIG --dry-run",
        )


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
