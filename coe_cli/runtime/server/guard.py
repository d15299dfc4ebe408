"""Who may ask: Host and Origin against DNS rebinding and web pages, keys in constant time, bodies within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from typing import Any

from coe_cli.core.names import size_words
from coe_cli.core.units import BYTES_PER_MB
from coe_cli.runtime.server.http_errors import HttpError
from coe_cli.runtime.server.streaming import Receive

MAX_BODY_BYTES = 8 * 2**20
MAX_BODIES_BYTES = 8 * MAX_BODY_BYTES
_BODY_WAIT_S = 30.0

Headers = dict[bytes, bytes]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Checks requests to a server bound to ``host`` and ``port``.

    ``allowed_hosts`` are further names of it, with whatever port: what a balancer in front of it puts into Host.
    ``origins`` are those of web pages that may ask, as browsers send them; ``*`` is every one.
    """

    def __init__(
        self,
        host: str,
        port: int,
        api_key: str | None,
        token: str,
        allowed_hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
    ) -> None:
        self._origins = {origin.lower().rstrip("/").encode("latin-1", "replace") for origin in origins}
        self._port = port
        self._key = api_key.encode() if api_key else None
        self._token = token.encode()
        names = {"localhost"} if is_loopback(host) else {"localhost", host.lower(), socket.gethostname().lower()}
        self._names = names
        self._allowed = {name.lower().rstrip(".") for name in allowed_hosts}
        self._only_loopback = is_loopback(host)

    def check_origin(self, headers: Headers) -> None:
        """Refuse what a web page can send: a name that is not ours in Host, or another page's Origin.

        An IP address in Host cannot come from DNS rebinding, which needs a name of the attacker's.

        Raises:
            HttpError: 403.
        """
        host, port = _split_host(headers.get(b"host", b"").decode("latin-1"))
        ports = (self._port, None if self._port == 80 else self._port)
        if host not in self._allowed and not (self._is_ours(host) and port in ports):
            raise HttpError(
                403, "the Host header does not name this server", "Use its address as the URL.", code="wrong_host"
            )
        origin = headers.get(b"origin")
        if origin is not None and not (self._is_same(origin, headers) or self.cors_headers(headers)):
            raise HttpError(403, "requests from other web pages are refused", "See --cors-origin.", code="wrong_origin")

    def cors_headers(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """What lets the page that asks read the answer; nothing where its origin was not allowed."""
        origin = headers.get(b"origin", b"").lower()
        if not origin or not ({origin, b"*"} & self._origins):
            return []
        return [
            (b"access-control-allow-origin", headers[b"origin"]),
            (b"access-control-expose-headers", b"x-request-id, x-coe-note, retry-after"),
            (b"vary", b"Origin"),
        ]

    def preflight(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """The answer to a browser that asks what it may send."""
        wanted = headers.get(b"access-control-request-headers", b"authorization, content-type")
        return [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", wanted[:1024]),
            (b"access-control-max-age", b"600"),
        ]

    def _is_same(self, origin: bytes, headers: Headers) -> bool:
        """Whether the page came from this server, whose name Host was found to be."""
        return origin.lower() == b"http://" + headers.get(b"host", b"").lower()

    def check_key(self, headers: Headers) -> None:
        """Refuse a request without the API key, where there is one; the college's own token will do as well.

        Raises:
            HttpError: 401.
        """
        if self._key is None:
            return
        given = _given_key(headers)
        if not (hmac.compare_digest(given, self._key) | hmac.compare_digest(given, self._token)):
            raise HttpError(
                401,
                "the API key is missing or wrong",
                "Send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`.",
                code="invalid_api_key",
            )

    def check_token(self, headers: Headers) -> None:
        """Refuse whoever has not read the state file.

        Raises:
            HttpError: 401.
        """
        if not hmac.compare_digest(_given_key(headers), self._token):
            raise HttpError(401, "this endpoint is for coe itself", "Use `coe ps` or `coe stop`.", code="wrong_token")

    def _is_ours(self, host: str) -> bool:
        if host in self._names:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or not self._only_loopback


def _split_host(value: str) -> tuple[str, int | None]:
    """Host in lower case without brackets, and port or None; ('', None) when it is malformed."""
    host, separator, port = value.rpartition(":")
    if not separator or host.endswith(":") or (value.startswith("[") and value.endswith("]")):
        host, port = value, ""
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return "", None
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5):
        return "", None
    return host.lower().rstrip("."), int(port) if port else None


def _given_key(headers: Headers) -> bytes:
    """The key of ``Authorization: Bearer``, or of ``X-Api-Key`` as Anthropic's clients send it."""
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    return value.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"").strip()


class BodyBudget:
    """Bytes of the bodies of all the requests that have not been answered; more than ``most`` are not taken in."""

    def __init__(self, most: int = MAX_BODIES_BYTES) -> None:
        self._most = most
        self.taken = 0

    @contextlib.asynccontextmanager
    async def body(self, receive: Receive, headers: Headers) -> AsyncIterator[bytes]:
        """The whole body of one request, counted until the block ends.

        Raises:
            HttpError: as ``read_body``; 503 where the bodies of others leave no room for it.
        """
        before = 0

        def count(size: int) -> None:
            nonlocal before
            if self.taken + size - before > self._most:
                raise HttpError(
                    503, "the requests that are being answered take too much memory", "Try again.", code="bodies_full"
                )
            self.taken += size - before
            before = size

        try:
            yield await read_body(receive, headers, count)
        finally:
            self.taken -= before


async def read_body(receive: Receive, headers: Headers, count: Callable[[int], None] = lambda size: None) -> bytes:
    """The whole body; ``count`` hears how many bytes of it there are, as they come, and may refuse them.

    Raises:
        HttpError: it is too large (413), too slow (408) or compressed (415).
        ConnectionError: the client has gone.
    """
    too_large = HttpError(
        413,
        f"the body is larger than {size_words(MAX_BODY_BYTES / BYTES_PER_MB)}",
        "Send it in parts.",
        code="body_too_large",
    )
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")[:64]
    if encoding.lower() != "identity":
        raise HttpError(
            415,
            f"bodies with Content-Encoding `{encoding}` are not read",
            "Send it plain.",
            code="unsupported_encoding",
        )
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_WAIT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError
                part = message.get("body", b"")
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise too_large
                count(size)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        told = f"the body did not arrive within {_BODY_WAIT_S:g} s"
        raise HttpError(408, told, "Send as much as Content-Length says.", code="body_too_slow") from None


def replay(body: bytes, receive: Receive) -> Receive:
    """A channel that gives ``body`` once more and then what comes after it."""
    pending: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> MutableMapping[str, Any]:
        return pending.pop() if pending else await receive()

    return again
