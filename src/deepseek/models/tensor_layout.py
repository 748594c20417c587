"""The layout of a safetensors file: an 8-byte length, a JSON header, then the tensors' bytes.

Everything a header declares is checked here, before anything of its size is allocated: a stranger's
file cannot exhaust memory, point outside itself, or name the same bytes twice. The format:
https://huggingface.co/docs/safetensors.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

import torch
from torch import Tensor

from deepseek.errors import CheckpointError, ConfigError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 512 * 1024**2
"""Above the header of any real model: 100 bytes a tensor make five million tensors, and 14 bytes a
value the vocabularies of a table of 38 million."""
MAX_DIMS = 64
_OF_RUNTIMES = (".onnx", ".pt2", ".xml", ".pte")


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        name: unique in the file.
        dtype: as in safetensors, such as "F32".
        shape: sizes.
        start: first byte, counted from the end of the header.
        stop: byte after the last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """A checked header.

    Attributes:
        entries: tensors in the order of their bytes.
        metadata: the texts under `__metadata__`.
        data_start: byte of the file where the tensors begin.
    """

    entries: tuple[TensorEntry, ...]
    metadata: dict[str, str]
    data_start: int


def damaged(path: object, what: str) -> CheckpointError:
    """Return the error for a file whose content contradicts itself."""
    return CheckpointError(
        f"{path} is damaged: {what}", fix="copy or download the file again, or save the model anew"
    )


def read_layout(file: BinaryIO, path: object) -> Layout:
    """Read and check the header of an open safetensors file.

    Raises:
        CheckpointError: if this is another kind of file, cut off, or contradicts itself.
    """
    file_bytes = os.fstat(file.fileno()).st_size
    first = file.read(8)
    _refuse_other_kinds(first, path)
    if len(first) < 8:
        raise damaged(path, f"it has {file_bytes} bytes, less than the 8 of a header length")
    header_bytes = int.from_bytes(first, "little")
    if header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
        raise damaged(
            path,
            f"its header declares {header_bytes} bytes, the file has {file_bytes}"
            f" (limit {MAX_HEADER_BYTES})",
        )
    header = parse_object(file.read(header_bytes), path, "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged(path, "its metadata is not a table of texts")
    entries = [_read_entry(name, entry, path) for name, entry in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    end = 0
    for entry in entries:
        if entry.start != end:
            raise damaged(
                path,
                f"tensor {entry.name!r} begins at byte {entry.start},"
                f" the one before ends at byte {end}",
            )
        end = entry.stop
    if end != file_bytes - 8 - header_bytes:
        raise damaged(
            path, f"its tensors take {end} bytes, the file has {file_bytes - 8 - header_bytes}"
        )
    return Layout(tuple(entries), metadata, 8 + header_bytes)


def lay_out(tensors: Mapping[str, Tensor]) -> dict[str, dict]:
    """Return the header of a file of these tensors, in the order of their bytes.

    Wide types come first: every tensor then begins at a multiple of its item size.

    Raises:
        KeyError: a dtype that the format does not have.
    """
    header, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    return header


def encode_header(header: Mapping[str, object]) -> bytes:
    """Return the bytes before the tensors: the length, and the header padded to 8 bytes.

    Raises:
        ConfigError: it is longer than what `read_layout` takes.
        ValueError: it holds a number that JSON does not have.
        TypeError: it holds something else than JSON does.
    """
    text = json.dumps(header, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    check_header_bytes(len(text))
    return len(text).to_bytes(8, "little") + text


def check_header_bytes(num_bytes: int) -> None:
    """Check that a header could be read again.

    Raises:
        ConfigError: it is longer than what `read_layout` takes.
    """
    if num_bytes > MAX_HEADER_BYTES:
        raise ConfigError(
            f"the header of the model file would have {num_bytes} bytes, above the"
            f" {MAX_HEADER_BYTES} that can be read",
            fix="shorten what the model knows of its data: the vocabularies of a table by"
            " encoding: hash, a lower max_size or a higher min_count",
        )


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in row order: copied only from a GPU or where strided."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def parse_object(text: bytes | str, path: object, what: str) -> dict:
    """Parse a JSON object, with no name in it twice.

    Raises:
        CheckpointError: if it is not one.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict:
        content = dict(pairs)
        if len(content) != len(pairs):
            raise damaged(path, f"its {what} has a name twice")
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"its {what} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise damaged(path, f"its {what} is a {type(content).__name__}, not a JSON object")
    return content


def is_size(value: object) -> bool:
    """Return whether a JSON value is an integer >= 0 that fits 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _read_entry(name: str, entry: object, path: object) -> TensorEntry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, f"tensor {name!r} lacks dtype, shape or data_offsets, or has more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise damaged(path, f"tensor {name!r} has the unknown dtype {str(dtype)[:20]!r}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(is_size, shape)):
        raise damaged(path, f"tensor {name!r} has a shape that is none")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        raise damaged(path, f"tensor {name!r} has data_offsets that are none")
    start, stop = offsets
    # Python's integers do not overflow: a product of huge sizes stays huge.
    if stop - start != prod(shape) * DTYPES[dtype].itemsize:
        raise damaged(
            path, f"tensor {name!r} ({dtype}, shape {shape}) does not fill bytes {start} to {stop}"
        )
    return TensorEntry(name, dtype, tuple(shape), start, stop)


def _refuse_other_kinds(first: bytes, path: object) -> None:
    is_long = int.from_bytes(first, "little") > MAX_HEADER_BYTES
    if is_long and str(path).endswith(_OF_RUNTIMES):
        raise CheckpointError(
            f"{path} is the file of a runtime, not of a model",
            fix="give the model.bin that it was exported from",
        )
    # A header of such a length would be 10 PB: no safetensors file begins so.
    if is_long and (
        first[:4] == b"PK\x03\x04" or (first[:1] == b"\x80" and first[1:2] in b"\x02\x03\x04\x05")
    ):
        raise CheckpointError(
            f"{path} is a pickle (torch.save), which can run code when it is loaded",
            fix="load it with ModelEngine(architecture, weights=path, allow_pickle=True) if you"
            " trust it, then save it with engine.save('model.bin')",
        )
