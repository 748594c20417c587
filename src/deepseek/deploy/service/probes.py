"""Answers the probes of a cluster on a port of their own: who asks there needs no token.

It says whether the service runs (`/health`) and whether every model answers (`/ready`), by a
status alone.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

SECONDS = 5.0
MAX_LINE = 1024
_REASONS = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}


async def start_probes(is_ready: Callable[[], bool], listener: socket.socket) -> asyncio.Server:
    """Return the server, which answers already.

    Args:
        is_ready: whether every model answers.
        listener: socket that listens; closed with the server.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError, TimeoutError, EOFError):
            async with asyncio.timeout(SECONDS):
                words = (await reader.readline()).split()
                status = 404
                if len(words) == 3 and words[0] == b"GET":
                    status = {
                        b"/health": 200, b"/ready": 200 if is_ready() else 503,
                    }.get(words[1], 404)  # fmt: skip
                head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: 0\r\n"
                writer.write(f"{head}Connection: close\r\n\r\n".encode())
                await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, sock=listener, limit=MAX_LINE)
