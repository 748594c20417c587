"""A folder in the form of Hugging Face, read as JSON and safetensors, and written.

Nothing else in it is opened: no code, no pickle, no class is looked up by a name in a file.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from deepseek.errors import CheckpointError, ConfigError
from deepseek.models.tensor_layout import parse_object
from deepseek.models.weights import read_pickle, read_weights

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
    "merges.txt", "generation_config.json", "preprocessor_config.json",
)  # fmt: skip
"""Files of text that are carried along as they are."""
_SETTINGS = ("tokenizer_config.json", "generation_config.json", "preprocessor_config.json")
MAX_JSON_BYTES = 64 * 1024**2
_SHARD = re.compile(r"[\w][\w.-]{0,200}\.safetensors")
# Keys that make transformers fetch or run code.
_RUNS_CODE = ("auto_map", "custom_pipelines")


@dataclass(frozen=True)
class Folder:
    """What is read from a folder.

    Attributes:
        config: `config.json`.
        state: name -> tensor.
        files: name -> content of the files that are carried along.
    """

    config: dict[str, Any]
    state: dict[str, Tensor] = field(repr=False)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)


def read_folder(path: Path, *, allow_pickle: bool = False) -> Folder:
    """Read a folder in the form of Hugging Face.

    Args:
        path: the folder.
        allow_pickle: read `pytorch_model.bin`, with torch's restricted unpickler, where there is no
            safetensors file.

    Raises:
        ConfigError: a file is missing, or one that could run code is needed.
        CheckpointError: a file is damaged, or contradicts another.
    """
    config = _read_json(path / CONFIG, "it is no folder of Hugging Face")
    refuse_code(config, path / CONFIG)
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{path / CONFIG} has a quantization_config: the weights are quantised",
            fix="take the model before it was quantised",
        )
    files = {name: _read_bytes(path / name) for name in TOKENIZER_FILES if (path / name).is_file()}
    for name in _SETTINGS:
        if name in files:
            refuse_code(parse_object(files[name], path / name, "content"), path / name)
    return Folder(config, _read_state(path, allow_pickle), files)


def refuse_code(config: Mapping[str, Any], source: object) -> None:
    """Raise `CheckpointError` if a configuration would have code run or fetched."""
    found = [key for key in _RUNS_CODE if config.get(key)]
    found += [f"{key}.auto_map" for key, value in config.items()
              if isinstance(value, Mapping) and value.get("auto_map")]  # fmt: skip
    if found:
        raise CheckpointError(
            f"{source} has {', '.join(found)}: the model is computed by code that comes with the"
            " weights, which is never run",
            fix="build the model from code that you have read, and hand over the module",
        )


def write_folder(
    path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], files: Mapping[str, bytes]
) -> None:
    """Write a folder that `from_pretrained` opens; there is the whole of it or none.

    Args:
        path: the folder, which must not be there yet or be empty.
        config: `config.json`.
        state: name -> tensor; of names that share a tensor the first is written.
        files: further files: name -> content.

    Raises:
        ConfigError: there is something at `path` already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} is there already", fix="give a folder that does not exist")
    unique: dict[int, str] = {}
    for name, tensor in state.items():
        unique.setdefault(id(tensor), name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {name: state[name].contiguous() for name in unique.values()}
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / WEIGHTS).chmod(0o644)  # save_file lets nobody else read it
        temporary.chmod(0o755)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_state(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if (path / WEIGHTS).is_file():
        return read_weights(path / WEIGHTS)
    if (path / INDEX).is_file():
        return _read_shards(path)
    if not (path / PICKLE).is_file():
        raise ConfigError(
            f"{path} has neither {WEIGHTS} nor {INDEX}", fix="copy the whole folder, weights too"
        )
    if not allow_pickle:
        raise ConfigError(
            f"{path} has its weights in {PICKLE} only, a pickle, which can run code when it is"
            " loaded",
            fix=f"take a folder with {WEIGHTS}, or give allow_pickle=True if you trust where it"
            " comes from",
        )
    return read_pickle(path / PICKLE)


def _read_shards(path: Path) -> dict[str, Tensor]:
    index = _read_json(path / INDEX, "it was there a moment ago")
    table = index.get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError(
            f"{path / INDEX} has no weight_map from tensors to files", fix="copy the folder again"
        )
    state: dict[str, Tensor] = {}
    for shard in sorted(set(table.values())):
        if not _SHARD.fullmatch(shard):
            raise CheckpointError(
                f"{path / INDEX} names {shard!r}, which is no safetensors file of the folder",
                fix="copy the folder again",
            )
        if not (path / shard).is_file():
            count = sum(name == shard for name in table.values())
            raise CheckpointError(
                f"{path / INDEX} names {shard}, which is not there: {count} of {len(table)} tensors"
                " are missing",
                fix="copy the missing file into the folder",
            )
        for name, tensor in read_weights(path / shard).items():
            if table.get(name) != shard:
                raise CheckpointError(
                    f"{path / shard} has the tensor {name}, and {INDEX} says that it has not",
                    fix="copy the folder again",
                )
            state[name] = tensor
    lost = [name for name in table if name not in state]
    if lost:
        raise CheckpointError(
            f"{path}: {INDEX} names {len(lost)} tensors that no file has: {', '.join(lost[:4])}",
            fix="copy the folder again",
        )
    return state


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path} is not there: {otherwise}", fix="check the path")
    return parse_object(_read_bytes(path), path, "content")


def _read_bytes(path: Path) -> bytes:
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{path} has {size} bytes, more than the {MAX_JSON_BYTES} that are read",
            fix="copy the folder again",
        )
    return path.read_bytes()
