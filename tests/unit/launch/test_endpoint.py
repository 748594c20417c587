import socket

import pytest

from deepseek.errors import ConfigError
from deepseek.launch.endpoint import Endpoint, parse_endpoints


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Endpoint("127.0.0.1", listening.getsockname()[1])


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("a", [Endpoint("a", 29500)]),
        ("a:1,b.c:65535", [Endpoint("a", 1), Endpoint("b.c", 65535)]),
        ("10.0.0.1:29500, 10.0.0.2", [Endpoint("10.0.0.1"), Endpoint("10.0.0.2")]),
        ("[fd00::1]:7,[fd00::2]", [Endpoint("fd00::1", 7), Endpoint("fd00::2")]),
    ],
)
def test_endpoints_are_read_in_their_order(text, endpoints):
    assert list(parse_endpoints(text)) == endpoints


@pytest.mark.parametrize(
    "text", ["", "a,", ":1", "a:0", "a:65536", "a:x", "a b", "http://a", "fd00::1", "a:1,a:1", "[]"]
)
def test_what_is_no_endpoint_is_refused_with_the_text(text):
    with pytest.raises(ConfigError, match="--rdzv-endpoint=") as caught:
        parse_endpoints(text)
    assert text in str(caught.value)


def test_an_endpoint_is_written_as_it_is_read():
    for text in ("a:1", "[fd00::1]:7"):
        assert str(parse_endpoints(text)[0]) == text


def test_listening_and_free_exclude_each_other(server):
    assert (server.is_listening(), server.is_free(), server.is_local()) == (True, False, True)


def test_closed_port_of_this_host_is_free():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = Endpoint("127.0.0.1", listening.getsockname()[1])
    assert (endpoint.is_listening(), endpoint.is_free()) == (False, True)


def test_address_of_another_host_is_neither_local_nor_free():
    other = Endpoint("192.0.2.1")  # reserved for documentation
    assert (other.is_local(), other.is_free()) == (False, False)


def test_unknown_name_is_no_error_but_not_there_yet():
    unknown = Endpoint("no-such-host.invalid")
    assert not unknown.is_listening()
    assert not unknown.is_local()
    assert unknown.own_address() is None


def test_own_address_is_the_one_towards_the_endpoint(server):
    assert server.own_address() == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "address", "own"),
    [
        ("node1", "127.0.1.1", None),  # as Debian has it in /etc/hosts
        ("localhost", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
    ],
)
def test_own_address_is_no_loopback_of_a_name(host, address, own, monkeypatch):
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 29500))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry])
    assert Endpoint(host).own_address() == own
