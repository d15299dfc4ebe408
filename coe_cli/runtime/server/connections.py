"""Bounds on connections, below HTTP: how many, how long a request's head may take, and how large it may be.

uvicorn has no limit for the head of a request: a client that sends a byte now and then holds its connection for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_WAIT_S = 10.0
"""A new connection, or a request that has begun, has so long until its head is complete."""
MAX_HEAD_BYTES = 65_536
SPARE_CONNECTIONS = 256
"""Beside those whose requests may wait: for what is answered at once, and for keep-alive."""

_HINTS = {
    "too_many_connections": "Try again, with fewer connections.",
    "bad_request": "This is not a request of HTTP/1.1, or it has no Host header.",
    "head_too_large": f"Send at most {MAX_HEAD_BYTES} bytes before the body.",
    "head_too_slow": f"Send what comes before the body within {HEAD_WAIT_S:g} seconds.",
}

_PROTOCOL: Any = AutoHTTPProtocol


class BoundedProtocol(_PROTOCOL):  # type: ignore[misc]
    """One connection. ``open_now`` are all of one server; times in seconds."""

    max_connections: int
    head_wait_s: float
    open_now: set[Any]

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.open_now.add(self)
        # Without it each answer waits 40 ms or more for an ACK. asyncio sets it on some sockets only, on Windows on none that it accepts.
        with contextlib.suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.open_now) > self.max_connections:
            self._refuse(transport, "503 Service Unavailable", "too_many_connections", "Retry-After: 1\r\n")
        else:
            self._timer = asyncio.get_running_loop().call_later(self.head_wait_s, self._too_slow)

    def data_received(self, data: bytes) -> None:
        if self.cycle is None or not self.cycle.more_body:  # else the rest of a body
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_request:
            self._stop_timer()
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(self.transport, "431 Request Header Fields Too Large", "head_too_large")
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.head_wait_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_now.discard(self)
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's word on what is not HTTP, which would be plain text."""
        if self._in_request and self.cycle.response_started:
            self.transport.close()
        elif self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(self.transport, "431 Request Header Fields Too Large", "head_too_large")
        else:
            self._refuse(self.transport, "400 Bad Request", "bad_request")

    @property
    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _too_slow(self) -> None:
        self._timer = None
        if not self._in_request:
            self._refuse(self.transport, "408 Request Timeout", "head_too_slow")

    def _stop_timer(self) -> None:
        self._head_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, transport: Any, status: str, code: str, header: str = "") -> None:
        """Answer past HTTP's own course and close; nothing that comes after it is read."""
        self._stop_timer()
        if transport is None or transport.is_closing():
            return
        kind = "server_error" if status.startswith("5") else "invalid_request_error"
        body = f'{{"error":{{"message":"{status[4:]}. {_HINTS[code]}","type":"{kind}","param":null,"code":"{code}"}}}}'
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        transport.write(f"{head}{header}Connection: close\r\n\r\n{body}".encode())
        transport.close()


def bounded_protocol(max_connections: int, head_wait_s: float = HEAD_WAIT_S) -> type[asyncio.Protocol]:
    """uvicorn's protocol with these bounds, for ``uvicorn.Config(http=…)``."""
    bounds = {"max_connections": max_connections, "head_wait_s": head_wait_s, "open_now": set()}
    return type("BoundedProtocol", (BoundedProtocol,), bounds)
