"""Addresses at which hosts meet: whose they are, and whether somebody listens."""

import contextlib
import ipaddress
import socket
from dataclasses import dataclass

from deepseek.errors import ConfigError

DEFAULT_PORT = 29500
CONNECT_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Endpoint:
    """Host and port of a rendezvous store."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def is_local(self) -> bool:
        """Whether the address belongs to this host: only then can it be bound.

        torch compares host names instead, which fails where a name resolves to 127.0.1.1 or a host
        has several addresses.
        """
        return any(_can_bind(family, address[0], 0) for family, address in self._addresses())

    def is_free(self) -> bool:
        """Whether this host can open the port: it owns the address, and nobody has it yet."""
        return any(_can_bind(family, address[0], self.port) for family, address in self._local())

    def is_listening(self) -> bool:
        """Whether somebody accepts connections there."""
        for family, address in self._addresses():
            with contextlib.suppress(OSError), socket.socket(family) as client:
                client.settimeout(CONNECT_TIMEOUT_S)
                client.connect(address)
                return True
        return False

    def own_address(self) -> str | None:
        """Return the address of this host towards the endpoint, or `None` without a route.

        No packet is sent: connecting a datagram socket only asks the routing table. Debian resolves
        a host's own name to 127.0.1.1, where the other hosts would meet themselves: a loopback
        address counts where the endpoint names one.
        """
        for family, address in self._addresses():
            with (
                contextlib.suppress(OSError),
                socket.socket(family, socket.SOCK_DGRAM) as client,
            ):
                client.connect(address)
                own = client.getsockname()[0]
                if not _is_loopback(own) or self.host == "localhost" or _is_loopback(self.host):
                    return own
        return None

    def _local(self) -> list[tuple[int, tuple]]:
        return [
            (family, address)
            for family, address in self._addresses()
            if _can_bind(family, address[0], 0)
        ]

    def _addresses(self) -> list[tuple[int, tuple]]:
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError:  # a name that is not known yet: the pod of the first host is still pending
            return []
        return [(entry[0], entry[4]) for entry in found]


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):  # a name
        return ipaddress.ip_address(host).is_loopback
    return False


def _can_bind(family: int, address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket(family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        return True
    return False


def parse_endpoints(text: str) -> tuple[Endpoint, ...]:
    """Read `HOST[:PORT][,HOST[:PORT]...]`; an IPv6 address stands in brackets.

    Raises:
        ConfigError: for an empty or repeated entry, or a port outside 1 to 65535.
    """
    endpoints = tuple(_parse_endpoint(entry.strip(), text) for entry in text.split(","))
    for entry in endpoints:
        if endpoints.count(entry) > 1:
            raise ConfigError(
                f"--rdzv-endpoint={text} names {entry} twice",
                fix="name each host that may lead once, in the order of preference",
            )
    return endpoints


def _parse_endpoint(entry: str, text: str) -> Endpoint:
    host, separator, port = entry.rpartition(":")
    if not separator or entry.endswith("]"):
        host, port = entry, str(DEFAULT_PORT)
    bare = host.removeprefix("[").removesuffix("]")
    is_bracketed = bare != host and host == f"[{bare}]"
    if not bare or "/" in bare or " " in bare or (":" in bare and not is_bracketed):
        raise ConfigError(
            f"--rdzv-endpoint={text}: {entry!r} is not HOST or HOST:PORT",
            fix="write an address such as 10.0.0.1:29500 or [fd00::1]:29500",
        )
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError(
            f"--rdzv-endpoint={text}: port {port!r} is not a number from 1 to 65535",
            fix="leave the port away for 29500",
        )
    return Endpoint(bare, int(port))
