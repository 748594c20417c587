"""What every request must pass before anything reads it: host, token, size and pace.

```
bound to loopback    the Host header must name it: no page of the web reaches it by another name
bound elsewhere      a token, but for pages that say nothing of what is served
any                  a body of limited size, which comes at some pace
```
"""

import asyncio
import ipaddress
import json
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.tokens import is_known

SMALL_BYTES = 256 << 10
"""Of a body that is always taken."""
LARGE_BODIES = 16
"""Of the largest size, that may be held at a time; large ones beyond that are refused."""


@dataclass(frozen=True)
class Limits:
    """What a client may take.

    Attributes:
        max_body_bytes: of a request.
        body_s: until all of a body has come.
        timeout_s: from then to the answer.
        max_pixels: of a picture, checked before it is decoded.
        max_samples: of a request.
        max_chars: of a text.
        max_voxels: of a volume, checked before it is decoded.
    """

    max_body_bytes: int = 16 << 20
    body_s: float = 20.0
    timeout_s: float = 30.0
    max_pixels: int = 50_000_000
    max_samples: int = 256
    max_chars: int = 100_000
    max_voxels: int = 2**27


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Protection:
    """ASGI middleware; see the module.

    Args:
        app: what is protected.
        limits: of a request.
        hashes: of tokens; empty: none is asked for.
        is_loopback: whether only this machine can reach the service.
        open_pages: paths that are read without a token, as a browser asks for them; what is sent
            with such a request is not read.
        on_refusal: told the status of each request that is turned down.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        hashes: tuple[str, ...],
        *,
        is_loopback: bool,
        open_pages: tuple[str, ...] = (),
        on_refusal: Callable[[int], None] = lambda status: None,
    ) -> None:
        self._app = app
        self._limits = limits
        self._hashes = hashes
        self._is_loopback = is_loopback
        self._open_pages = open_pages
        self._on_refusal = on_refusal
        self._held_bytes = 0  # of large bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or turn it down."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET; the server leaves the body away
            scope = {**scope, "method": "GET"}
        headers = {name.lower(): value for name, value in scope["headers"]}
        held = _Held()
        try:
            self._check_host(headers.get(b"host", b""))
            self._check_origin(headers)
            body: bytes | None = b""
            if scope["method"] != "GET" or scope["path"] not in self._open_pages:
                self._check_token(headers.get(b"authorization", b""))
                body = await self._read_body(headers, receive, held)
            if body is None:  # the client has gone
                return
            messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def replay() -> Message:
                return messages.pop() if messages else await receive()

            await self._app(scope, replay, send)
        except Refusal as refusal:
            self._on_refusal(refusal.status)
            await _answer(refusal, send)
        finally:
            self._held_bytes -= held.num_bytes

    def _check_host(self, host: bytes) -> None:
        name = host.decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if self._is_loopback and not is_loopback(name):
            raise Refusal(
                421, f"Host {name[:100]!r} is not this machine",
                fix="ask for localhost, or start the service with --host and a token",
            )  # fmt: skip

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        origin = headers.get(b"origin")
        if origin is not None and origin.rpartition(b"//")[2] != headers.get(b"host"):
            raise Refusal(403, "a page of another site asks", fix="ask from a program instead")

    def _check_token(self, given: bytes) -> None:
        if not self._hashes:
            return
        scheme, _, token = given.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not is_known(token.strip(), self._hashes):
            raise Refusal(401, "no valid token", fix="send Authorization: Bearer TOKEN")

    async def _read_body(
        self, headers: dict[bytes, bytes], receive: Receive, held: "_Held"
    ) -> bytes | None:
        limit = self._limits.max_body_bytes
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit():
            raise Refusal(400, "Content-Length is not a number", fix="leave it to the client")
        if int(declared) > limit:
            raise _too_large(int(declared), limit)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise _too_large(size, limit)
                    if size > SMALL_BYTES:
                        self._hold(size, held)
                    if not message.get("more_body", False):
                        return b"".join(parts) if len(parts) > 1 else parts[0]
        except TimeoutError:
            raise Refusal(
                408, f"the body had not come after {self._limits.body_s:g} s",
                fix="send it faster, or less of it",
            ) from None  # fmt: skip

    def _hold(self, size: int, held: "_Held") -> None:
        """Count a large body, of which `size` bytes have come, against what all may take."""
        self._held_bytes += size - held.num_bytes
        held.num_bytes = size
        if self._held_bytes > LARGE_BODIES * max(self._limits.max_body_bytes, SMALL_BYTES):
            raise Refusal(
                429, f"large bodies of other requests take {self._held_bytes >> 20} MiB already",
                fix="send it again later", retry_after_s=self._limits.body_s,
            )  # fmt: skip


@dataclass
class _Held:
    """What the body of one request takes of the room for large ones."""

    num_bytes: int = 0


def _too_large(size: int, limit: int) -> Refusal:
    return Refusal(
        413, f"a body of {size:,} bytes or more, the limit is {limit:,}",
        fix="send a smaller picture, or fewer samples",
    )  # fmt: skip


async def _answer(refusal: Refusal, send: Send) -> None:
    content = json.dumps(refusal.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(b"content-length", str(len(content)).encode())]
    headers += [(k.lower().encode(), v.encode()) for k, v in refusal.headers().items()]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
