"""Frames between the service and the process of a model: a head in JSON, then bytes of an array.

Both ends are ours; nothing is pickled all the same.
"""

import asyncio
import json
import math
import socket
import struct
from typing import BinaryIO

import numpy as np

_SIZES = struct.Struct("<IQ")
Frame = tuple[dict, np.ndarray | None]


def pack(head: dict, array: np.ndarray | None = None) -> list[bytes | memoryview]:
    """Return the parts of a frame."""
    if array is not None:
        array = np.ascontiguousarray(array)
        head = {**head, "shape": array.shape, "dtype": str(array.dtype)}
    text = json.dumps(head).encode()
    size = 0 if array is None else array.nbytes
    parts: list[bytes | memoryview] = [_SIZES.pack(len(text), size) + text]
    if array is not None and size:
        parts.append(array.data.cast("B"))
    return parts


def send(channel: socket.socket, head: dict, array: np.ndarray | None = None) -> None:
    """Write a frame."""
    for part in pack(head, array):
        channel.sendall(part)


def receive(source: BinaryIO) -> Frame:
    """Read a frame.

    Raises:
        EOFError: the other end has gone.
    """
    head_size, size = _SIZES.unpack(_read(source, _SIZES.size))
    head = json.loads(_read(source, head_size))
    return head, _to_array(head, _read(source, size))


async def receive_async(reader: asyncio.StreamReader) -> Frame:
    """Read a frame.

    Raises:
        EOFError: the other end has gone.
    """
    head_size, size = _SIZES.unpack(await reader.readexactly(_SIZES.size))
    head = json.loads(await reader.readexactly(head_size))
    return head, _to_array(head, await reader.readexactly(size) if size else b"")


def _read(source: BinaryIO, size: int) -> bytes:
    content = source.read(size)
    if len(content) < size:
        raise EOFError("the other end has gone")
    return content


def _to_array(head: dict, content: bytes) -> np.ndarray | None:
    if "shape" not in head:
        return None
    if math.prod(head["shape"]) == 0:
        return np.empty(head["shape"], head["dtype"])
    return np.frombuffer(content, head["dtype"]).reshape(head["shape"])
