"""The model file `.bin`: one safetensors file that knows what it is.

Its metadata key `deepseek` holds JSON: `format_version`, `library`, `architecture`, `config`,
`spec`, `dtypes`, `tied` (name -> name of the tensor it shares), `weights_hash` (xxh3-128 of the
tensors' bytes) and `header_hash` (xxh3-128 of all the rest). A model that was cut or quantised has
format version 2 and `changes`, what was done to its architecture, in order (`models.changes`).
Never pickle: loading runs no code from the file, and nothing in it is imported.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from deepseek.datasets.spec import DataSpec
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models.tensor_layout import (
    DTYPE_NAMES,
    DTYPES,
    Layout,
    bytes_of,
    check_header_bytes,
    damaged,
    encode_header,
    lay_out,
    parse_object,
    read_layout,
)
from deepseek.version import __version__
from deepseek.whole_file import replacing

KEY = "deepseek"
FORMAT_VERSION = 2
_KEYS = {
    "format_version", "library", "architecture", "config", "spec", "dtypes", "tied",
    "weights_hash", "header_hash",
}  # fmt: skip


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Attributes:
        architecture: a name of the zoo, or `module.QualName` of a class of the user's.
        config: arguments of the architecture.
        spec: what it was trained on, or `None`.
        state: name -> tensor; tied names share one tensor.
        library: version of the library that wrote it.
        changes: what was done to the architecture, in order: tables with a `kind`.
    """

    architecture: str
    config: dict
    spec: DataSpec | None
    state: dict[str, Tensor] = field(repr=False)
    library: str = __version__
    changes: tuple[dict, ...] = ()


def write_model_file(path: str | Path, content: ModelFile) -> None:
    """Write a model file; under `path` there is the old file or the whole new one, never a part.

    Raises:
        ConfigError: if a dtype cannot be stored, the config is not JSON, what is known of the data
            is too long for a header, or the folder is missing.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ConfigError(
            f"{path.parent} is not a folder, so {path.name} cannot be written there",
            fix=f"mkdir -p {path.parent}",
        )
    unique, tied = _untie(content.state)
    header = lay_out(unique)
    weights_hash = xxhash.xxh3_128()
    for name in header:
        weights_hash.update(bytes_of(unique[name]))
    info = {
        # readers of version 1 must refuse what they cannot build, and read all else
        "format_version": 2 if content.changes else 1,
        "library": __version__,
        "architecture": content.architecture,
        "config": content.config,
        "spec": content.spec.to_json() if content.spec else None,
        "dtypes": sorted({entry["dtype"] for entry in header.values()}),
        "tied": tied,
        "weights_hash": weights_hash.hexdigest(),
    }
    if content.changes:
        info["changes"] = list(content.changes)
    try:
        info["header_hash"] = _hash_header(info, header)
        encoded = encode_header(
            {"__metadata__": {KEY: json.dumps(info, allow_nan=False)}, **header}
        )
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the config of {content.architecture!r} cannot be stored as JSON: {error}",
            fix="build the model with numbers, texts, lists and tables only",
        ) from error
    _replace(path, encoded, (bytes_of(unique[name]) for name in header))


def check_spec(spec: DataSpec) -> None:
    """Check that a model file can hold what is known of data, before anything learns from them.

    Raises:
        ConfigError: it is too long for a header.
    """
    check_header_bytes(len(json.dumps(json.dumps(spec.to_json()))))


def read_model_file(path: str | Path) -> ModelFile:
    """Read and verify a model file.

    Raises:
        CheckpointError: if the file is missing, damaged, not ours, or of a later format.
    """
    try:
        with open(path, "rb") as file:
            layout = read_layout(file, path)
            info = _read_info(layout, path)
            header = {
                entry.name: {
                    "dtype": entry.dtype,
                    "shape": list(entry.shape),
                    "data_offsets": [entry.start, entry.stop],
                }
                for entry in layout.entries
            }
            if _hash_header(info, header) != info["header_hash"]:
                raise damaged(path, "its header does not match the hash in it")
            spec = None if info["spec"] is None else DataSpec.from_json(info["spec"])
            state, weights_hash = read_tensors(file, layout, path)
    except OSError as error:
        is_folder = isinstance(error, IsADirectoryError)
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}",
            fix="give the model file in it, such as model.bin" if is_folder else "check the path",
        ) from error
    if weights_hash != info["weights_hash"]:
        raise damaged(
            path, f"its weights have the hash {weights_hash}, saved was {info['weights_hash']}"
        )
    for alias, name in info["tied"].items():
        if name not in state or alias in state:
            raise damaged(path, f"tensor {alias!r} is tied to {name!r}, which cannot be")
    state.update({alias: state[name] for alias, name in info["tied"].items()})
    return ModelFile(
        info["architecture"], info["config"], spec, state, info["library"],
        tuple(info.get("changes", ())),
    )  # fmt: skip


def read_tensors(
    file: BufferedReader, layout: Layout, path: object
) -> tuple[dict[str, Tensor], str]:
    """Read every tensor of a checked layout, once, and hash the bytes on the way.

    Returns:
        The tensors by name, on the CPU, and the xxh3-128 of their bytes.
    """
    digest = xxhash.xxh3_128()
    state = {}
    file.seek(layout.data_start)
    for entry in layout.entries:
        tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        buffer = bytes_of(tensor)
        if len(buffer) and file.readinto(buffer) != len(buffer):
            raise damaged(path, f"it ends inside tensor {entry.name!r}")
        digest.update(buffer)
        state[entry.name] = tensor
    return state, digest.hexdigest()


def _read_info(layout: Layout, path: object) -> dict:
    if KEY not in layout.metadata:
        raise CheckpointError(
            f"{path} is a safetensors file without the metadata of a model file",
            fix="name its architecture: ModelEngine(architecture, weights=path)",
        )
    info = parse_object(layout.metadata[KEY], path, "metadata")
    version = info.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version={version}, this library ({__version__}) reads up to"
            f" {FORMAT_VERSION}",
            fix="pip install --upgrade deepseek-framework",
        )
    keys = _KEYS | {"changes"} if version == 2 else _KEYS
    if info.keys() != keys or version not in (1, 2):
        raise damaged(path, f"its metadata has the keys {sorted(info)}")
    kinds = {"library": str, "architecture": str, "config": dict, "tied": dict,
             "weights_hash": str, "header_hash": str}  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(info[key], kind):
            raise damaged(path, f"{key!r} in its metadata is a {type(info[key]).__name__}")
    if not all(isinstance(name, str) for name in info["tied"].values()):
        raise damaged(path, "'tied' in its metadata is not a table of names")
    changes = info.get("changes", [])
    if not isinstance(changes, list) or not all(isinstance(each, dict) for each in changes):
        raise damaged(path, "'changes' in its metadata is not a list of tables")
    return info


def _untie(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the distinct tensors, and alias -> name for those that are the same memory."""
    unique: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple, str] = {}
    for name, tensor in state.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise ConfigError(
                f"tensor {name!r} has dtype {tensor.dtype}, which a model file cannot hold",
                fix=f"cast it to one of {sorted(DTYPE_NAMES.values())}",
            )
        if tensor.is_meta:
            raise ConfigError(f"tensor {name!r} has no values (meta device)", fix="load weights")
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            tied[name] = seen[place]
        else:
            seen[place] = name
            unique[name] = tensor.detach()
    return unique, tied


def _hash_header(info: Mapping, header: Mapping) -> str:
    rest = {key: value for key, value in info.items() if key != "header_hash"}
    text = json.dumps([rest, header], sort_keys=True, allow_nan=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


def _replace(path: Path, header: bytes, parts: Iterable[memoryview]) -> None:
    with replacing(path) as draft, open(draft, "wb") as file:
        file.write(header)
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    # The rename itself is durable once the folder is written.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
