"""Where the sizes of a model come from: a name, a file of Hugging Face or ours, or a table."""

import json
import os.path
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from deepseek.config import TextDataConfig, read_config
from deepseek.errors import ConfigError
from deepseek.planner.adapters import with_adapters
from deepseek.planner.huggingface import (
    VISION_NOTE,
    is_vision,
    shape_from_huggingface,
    shape_from_table,
)
from deepseek.planner.presets import find_shape
from deepseek.planner.shape import TransformerShape
from deepseek.planner.vocabulary import find_vocabulary
from deepseek.published import gated_hidden_dim

_ALIASES = {
    "layers": "num_layers",
    "seq": "context_length",
    "vocab": "vocab_size",
    "hidden": "hidden_dim",
    "experts": "num_experts",
    "gated": "is_gated",
    "tied": "is_tied",
    "causal": "is_causal",
}
_NEED_VOCABULARY = "give --vocab-size: the tokens of the vocabulary, which come from the data"
_EXPERTS = "all experts are on every rank that has the layer: ranks of experts (ep) are not planned"
VOCABULARY_MULTIPLE = 64
"""The library's decoders pad their vocabulary to a multiple of this."""


@dataclass(frozen=True)
class ModelSource:
    """A shape, and what was assumed to get it.

    Attributes:
        shape: sizes.
        note: an approximation that a reader must know of; may be empty.
        batch_size: sequences of a step that the file asks for; 0 where it does not.
    """

    shape: TransformerShape
    note: str = ""
    batch_size: int = 0


def find_model(text: str, context_length: int = 0, vocab_size: int = 0) -> ModelSource:
    """Return the sizes of the model that `text` names.

    Args:
        text: a preset, a `config.json` or a folder with one, a `model_config.yaml`, or a table
            such as `layers=48,dim=6144,heads=64,vocab=51200,seq=2048`.
        context_length: tokens of a sequence; 0: what the source says.
        vocab_size: tokens of the vocabulary; 0: what the source says.

    Raises:
        ConfigError: it is none of these, or lacks a size.
    """
    path = Path(text)
    # a file may lie in runs/lr=0.1; unlike Path, os.path takes a table too long for a file's name
    if "=" in text and not os.path.exists(text):
        source = ModelSource(_read_table(text, context_length, vocab_size))
    elif path.suffix in (".yaml", ".yml"):
        source = _read_own(path, context_length, vocab_size)
    elif path.suffix == ".json" or path.is_dir():
        source = _read_huggingface(path, context_length)
    else:
        source = ModelSource(find_shape(text, context_length))
    if (
        vocab_size
        and source.shape.vocab_size != vocab_size
        and path.suffix not in (".yaml", ".yml")
    ):
        source = replace(source, shape=replace(source.shape, vocab_size=vocab_size))
    if source.shape.num_experts > 1:
        source = replace(source, note=_EXPERTS)
    return source


def _read_table(text: str, context_length: int, vocab_size: int) -> TransformerShape:
    table: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not value:
            raise ConfigError(
                f"MODEL {text!r}: {part!r} is no KEY=NUMBER.",
                fix="write layers=48,dim=6144,heads=64,vocab=51200,seq=2048",
            )
        table[_ALIASES.get(key, key)] = _read_value(text, key, value)
    if context_length:
        table["context_length"] = context_length
    if vocab_size:
        table["vocab_size"] = vocab_size
    return shape_from_table(table)


def _read_value(text: str, key: str, value: str) -> int | bool | str:
    kinds = {field.name: field.type for field in fields(TransformerShape)}
    kind = kinds.get(_ALIASES.get(key, key))
    if kind in (str, "str"):
        return value
    if kind in (bool, "bool") and value.lower() in ("true", "yes", "1", "false", "no", "0"):
        return value.lower() in ("true", "yes", "1")
    try:
        return int(value.replace("_", ""))
    except ValueError:
        raise ConfigError(
            f"MODEL {text!r}: {key}={value} is no whole number.", fix=f"give {key} digits"
        ) from None


def _read_huggingface(path: Path, context_length: int) -> ModelSource:
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"MODEL {path}: {file} cannot be read ({error}).",
            fix="give a folder with a config.json of Hugging Face, or that file",
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(
            f"MODEL {file}: holds a {type(config).__name__}, and no object with the sizes.",
            fix="give the config.json of a Hugging Face model",
        )
    # A model of text and pictures has the sizes of its language model one level down.
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config
    shape = shape_from_huggingface(config, context_length)
    shape = replace(shape, name=file.resolve().parent.name or shape.name)
    return ModelSource(shape, VISION_NOTE if is_vision(config) else "")


def _read_own(path: Path, context_length: int, vocab_size: int) -> ModelSource:
    config = read_config(path).config
    args, told, data = dict(config.model.args), "", config.data
    if context_length:
        args["context_length"] = context_length
    needed = "vocab_size" if config.model.architecture == "encoder" else "num_classes"
    if not (vocab_size or args.get(needed)):
        vocab_size, told = find_vocabulary(data)
    try:
        source = shape_of_own(config.model.architecture, args, vocab_size)
    except ConfigError as error:
        raise ConfigError(f"MODEL {path}: {error.message}", fix=error.fix) from error
    shape = replace(source.shape, name=path.stem)
    if isinstance(data, TextDataConfig) and not context_length:
        shape = with_rows(shape, data.sequence_length)
    if config.trainer.lora is not None:
        shape = with_adapters(shape, config.model.architecture, config.trainer.lora)
    notes = "; ".join(filter(None, (source.note, told)))
    return replace(source, shape=shape, note=notes, batch_size=config.trainer.batch_size)


def with_rows(shape: TransformerShape, num_tokens: int) -> TransformerShape:
    """Return `shape` as it is trained on rows of at most so many tokens; its weights stay."""
    positions = shape.num_positions or shape.context_length
    length = min(shape.context_length, num_tokens)
    return replace(shape, context_length=length, num_positions=positions)


def shape_of_own(architecture: str, args: Mapping[str, Any], vocab_size: int = 0) -> ModelSource:
    """Return the sizes of a model of this library.

    Args:
        architecture: its name in the zoo, without a preset.
        args: of its constructor.
        vocab_size: tokens of the vocabulary; 0: what `args` say.

    Raises:
        ConfigError: it is no transformer, or lacks a size.
    """
    readers = {"gpt": _read_gpt, "llama": _read_llama, "encoder": _read_encoder, "vit": _read_vit}
    if architecture not in readers:
        raise ConfigError(
            f"model.architecture={architecture} is no transformer that the planner knows the"
            f" sizes of ({', '.join(readers)}).",
            fix="give the sizes: layers=12,dim=768,heads=12,vocab=50304,seq=1024; for the memory of"
            " any model: deepseek train CONFIG --dry-run",
        )
    try:
        return ModelSource(*readers[architecture](args, vocab_size))
    except KeyError as error:
        raise ConfigError(
            f"model.args has no {error.args[0]}.", fix=f"add model.args.{error.args[0]}"
        ) from error


def _sizes(args: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_layers": args["num_layers"],
        "dim": args["dim"],
        "heads": args["heads"],
        "hidden_dim": args.get("hidden_dim") or 0,
        "dropout": args.get("dropout", 0) > 0,
        "has_positions": True,
    }


def _read_gpt(args: Mapping[str, Any], vocab_size: int) -> tuple[TransformerShape, str]:
    tokens = vocab_size or args.get("num_classes")
    if not tokens:
        raise ConfigError("model.args.num_classes of a gpt is not set.", fix=_NEED_VOCABULARY)
    sizes = {**_sizes(args), "vocab_size": _pad(tokens)}
    shape = TransformerShape(
        "gpt",
        context_length=args["context_length"],
        has_biases=args.get("bias", False),
        **sizes,
    )
    return shape, ""


def _read_llama(args: Mapping[str, Any], vocab_size: int) -> tuple[TransformerShape, str]:
    tokens = vocab_size or args.get("num_classes")
    if not tokens:
        raise ConfigError("model.args.num_classes of a llama is not set.", fix=_NEED_VOCABULARY)
    sizes = {**_sizes(args), "has_positions": False, "vocab_size": _pad(tokens)}
    sizes["hidden_dim"] = sizes["hidden_dim"] or gated_hidden_dim(args["dim"])
    shape = TransformerShape(
        "llama",
        context_length=args["context_length"],
        kv_heads=args.get("kv_heads") or 0,
        head_dim=args.get("head_dim") or 0,
        is_gated=True,
        is_tied=args.get("tied", False),
        **sizes,
    )
    return shape, ""


def _pad(tokens: int) -> int:
    return -(-tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def _read_encoder(args: Mapping[str, Any], vocab_size: int) -> tuple[TransformerShape, str]:
    tokens = vocab_size or args["vocab_size"]
    sizes = {**_sizes(args), "dropout": args.get("dropout", 0.1) > 0}
    shape = TransformerShape(
        "encoder",
        vocab_size=tokens,
        context_length=args["context_length"],
        has_biases=True,
        is_causal=False,
        **sizes,
    )
    return (
        shape,
        "costed as if every token had logits; training takes those of hidden ones",
    )


def _read_vit(args: Mapping[str, Any], vocab_size: int) -> tuple[TransformerShape, str]:
    del vocab_size  # pictures have none
    size, patch = args["image_size"], args["patch_size"]
    height, width = (size, size) if isinstance(size, int) else size
    shape = TransformerShape(
        "vit",
        # As many rows as a patch has numbers: the projection of patches, counted as the head.
        vocab_size=patch * patch * args.get("channels", 3),
        context_length=height // patch * (width // patch)
        + (args.get("pool", "cls") == "cls")
        + (args.get("distillation", "none") != "none"),
        has_biases=True,
        is_causal=False,
        **_sizes(args),
    )
    return shape, VISION_NOTE
