"""Connections that send the head of a request too slowly or without an end, or read no answer."""

import asyncio
import socket

import pytest
import uvicorn
import uvloop
from uvicorn.server import ServerState

from deepseek.deploy.service import server
from deepseek.errors import ConfigError

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
LARGE = 32 << 20


async def app(scope, receive, send):
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    body = bytes(LARGE if scope["path"] == "/large" else 0)
    headers = [(b"content-length", b"%d" % len(body))] if body else []
    status = 200 if body else 204
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def state():
    """Return what the server knows: its connections."""
    return ServerState()


@pytest.fixture
def connect(monkeypatch, state):
    """Run `talk(reader, writer)` against a connection of a server that waits for 0.2 s."""
    monkeypatch.setattr(server, "SILENT_S", 0.2)
    monkeypatch.setattr(server, "UNREAD_S", 0.2)
    config = uvicorn.Config(app, log_level="error")
    config.load()

    def run(talk):
        async def main():
            make = lambda: server._Impatient(config, state, {})  # noqa: E731
            listening = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
            address = listening.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address)
            try:
                async with asyncio.timeout(20):
                    return await talk(reader, writer)
            finally:
                writer.close()
                listening.close()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())

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


@pytest.mark.parametrize("then", ["", "Connection: close\r\n"])
def test_an_answer_that_nobody_reads_is_given_up(connect, state, then):
    async def talk(reader, writer):
        writer.write(f"GET /large HTTP/1.1\r\nHost: localhost\r\n{then}\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        while state.connections:
            await asyncio.sleep(0.01)
        return await reader.read()

    assert len(connect(talk)) < LARGE


def test_an_answer_that_is_read_slowly_is_not(connect):
    async def talk(reader, writer):
        writer.write(b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        received = 0
        while part := await reader.read(LARGE):
            received += len(part)
            await asyncio.sleep(0.004)
        return received

    assert connect(talk) == LARGE


def test_a_probe_port_in_use_is_an_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = server.ServiceSettings(folder=tmp_path, port=0, probe_port=port)
        with pytest.raises(ConfigError, match=f"probe_port={port} cannot be used") as error:
            server.serve(settings)
    assert "--probe-port" in (error.value.fix or "")
