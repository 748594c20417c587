"""Connections that send the head of a request too slowly, or without an end."""

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from deepseek.deploy.service import server

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


async def app(scope, receive, send):
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def connect(monkeypatch):
    """Run `talk(reader, writer)` against a connection of a server that waits for 0.2 s."""
    monkeypatch.setattr(server, "SILENT_S", 0.2)
    config = uvicorn.Config(app, log_level="error")
    config.load()

    def run(talk):
        async def main():
            loop, state = asyncio.get_running_loop(), ServerState()
            make = lambda: server._Impatient(config, state, {})  # noqa: E731
            listening = await loop.create_server(make, "127.0.0.1", 0)
            address = listening.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address)
            try:
                async with asyncio.timeout(20):
                    return await talk(reader, writer)
            finally:
                writer.close()
                listening.close()

        return asyncio.run(main())

    return run


@pytest.mark.parametrize("begin", [b"", HEAD, HEAD + b"\r\n" + HEAD])
def test_a_head_without_an_end_is_given_up_the_second_one_too(connect, begin):
    async def talk(reader, writer):
        writer.write(begin)
        return await reader.read()

    answers = connect(talk)
    assert answers.count(b"204") == (1 if b"\r\n\r\n" in begin else 0)


def test_a_head_of_any_size_is_not_kept(connect, monkeypatch):
    monkeypatch.setattr(server, "SILENT_S", 60.0)

    async def talk(reader, writer):
        writer.write(HEAD + b"X: ")
        sent = 0
        try:
            while True:
                writer.write(b"a" * 65536)
                await writer.drain()
                sent += 65536
                await asyncio.sleep(0)
        except ConnectionError:
            return sent

    assert connect(talk) < 64 << 20


def test_an_answer_that_takes_longer_is_waited_for(connect):
    async def talk(reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\nGET /")
        return await reader.read()

    assert connect(talk).count(b"204") == 1
