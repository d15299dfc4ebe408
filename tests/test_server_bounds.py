"""What a client may take of the college's connections and memory: half-sent heads, many connections, bodies in flight."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import uvicorn
from college_trial import pass_s

from coe_cli.runtime.server.connections import MAX_HEAD_BYTES, bounded_protocol
from coe_cli.runtime.server.guard import BodyBudget
from coe_cli.runtime.server.http_errors import HttpError, error_headers
from coe_cli.runtime.server.listening import bound_socket

HEAD_WAIT_S = 1000.0
WHOLE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSING = WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@dataclass
class Server:
    """Its port, the statuses that it has begun to give, and its connections."""

    port: int
    begun: list[int]
    connections: set[Any]

    async def until(self, holds: Callable[[Server], Any]) -> None:
        while not holds(self):
            await asyncio.sleep(0.01)


def served(test: Callable[[Server], Awaitable[None]], *, connections: int = 8) -> None:
    """Run ``test`` with a server on bounded connections. Time passes only where a test lets it pass."""
    begun: list[int] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        begun.append(200)
        await asyncio.sleep(HEAD_WAIT_S + 10)  # longer than a head may take: a request in progress is never cut off
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def main() -> None:
        protocol: Any = bounded_protocol(connections, HEAD_WAIT_S)
        config = uvicorn.Config(application, http=protocol, lifespan="off", log_config=None, interface="asgi3")
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        with bound_socket("127.0.0.1", 0) as listener:
            running = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                await test(Server(listener.getsockname()[1], begun, protocol.open_now))
            finally:
                server.should_exit = True
                await running

    asyncio.run(main())


async def sent(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back until the server closes the connection; ``pause_s`` passes between two parts."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.001)
            pass_s(pause_s)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def test_a_head_that_comes_byte_by_byte_is_given_up_and_others_are_answered() -> None:
    async def test(server: Server) -> None:
        good = asyncio.create_task(sent(server.port, CLOSING))
        await server.until(lambda it: it.begun)
        silent = asyncio.create_task(sent(server.port))
        await server.until(lambda it: len(it.connections) == 2)
        slow = await sent(server.port, *(WHOLE[:20][i : i + 1] for i in range(20)), pause_s=HEAD_WAIT_S / 10)
        for given in (slow, await silent):
            assert given == b"" or given.startswith(b"HTTP/1.1 408")
        answer = await good
        assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"ok")
        assert server.begun == [200]

    served(test)


def has_begun(number: int, server: Server) -> bool:
    return len(server.begun) > number


def test_a_second_request_on_the_connection_has_its_own_time() -> None:
    async def test(server: Server) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for number in range(2):
            writer.write(WHOLE[:10])
            await server.until(lambda it: any(each._head_bytes for each in it.connections))
            pass_s(HEAD_WAIT_S * 0.7)
            writer.write(WHOLE[10:])
            await server.until(partial(has_begun, number))
            pass_s(HEAD_WAIT_S + 10)
            assert b"200" in await reader.readuntil(b"ok")
        writer.write(WHOLE[:10])
        await server.until(lambda it: any(each._head_bytes for each in it.connections))
        pass_s(HEAD_WAIT_S)
        assert (await reader.read()).startswith(b"HTTP/1.1 408")
        writer.close()
        assert server.begun == [200, 200]

    served(test)


def test_an_answer_does_not_wait_for_an_acknowledgement() -> None:
    """Without TCP_NODELAY the body of each answer comes 40 ms after its head."""

    async def test(server: Server) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await server.until(lambda it: it.connections)
        (connection,) = server.connections
        assert connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()

    served(test)


def test_a_head_without_end_is_refused() -> None:
    async def test(server: Server) -> None:
        lines = [b"X-%d: %s\r\n" % (number, b"x" * 8000) for number in range(3 * MAX_HEAD_BYTES // 8000)]
        answer = await sent(server.port, b"GET / HTTP/1.1\r\nHost: a\r\n", *lines)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
        assert server.begun == []

    served(test)


BROKEN: list[bytes] = [
    b"nonsense\r\n\r\n",
    b"GET / HTTP/one\r\nHost: a\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
]


def test_what_is_not_http_is_told_so_as_json() -> None:
    async def test(server: Server) -> None:
        for request in BROKEN:
            head, _, body = (await sent(server.port, request)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400") and b"Content-Type: application/json" in head, (request, head)
            error = json.loads(body)["error"]
            assert list(error) == ["message", "type", "param", "code"] and error["type"] == "invalid_request_error"
        pass_s(HEAD_WAIT_S + 10)

    served(test)


def test_more_connections_than_allowed_are_told_to_come_back() -> None:
    async def test(server: Server) -> None:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(8)]
        await server.until(lambda it: len(it.connections) == 8)
        answer = await sent(server.port)
        assert answer.startswith(b"HTTP/1.1 503") and b"Retry-After: 1\r\n" in answer
        for _, writer in held:
            writer.close()
        await server.until(lambda it: not it.connections)
        good = asyncio.create_task(sent(server.port, CLOSING))
        await server.until(lambda it: it.begun)
        pass_s(HEAD_WAIT_S + 10)
        assert (await good).startswith(b"HTTP/1.1 200")

    served(test)


# --- bodies


def parts_of(*parts: bytes) -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
    left = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    left.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> MutableMapping[str, Any]:
        return left.pop(0)

    return receive


def test_bodies_in_flight_have_a_bound_and_give_their_room_back() -> None:
    async def main() -> None:
        budget = BodyBudget(most=100)
        async with budget.body(parts_of(b"x" * 30, b"x" * 30), {}) as first:
            assert len(first) == 60 == budget.taken
            with pytest.raises(HttpError) as refused:
                async with budget.body(parts_of(b"x" * 30, b"x" * 30), {}):
                    raise AssertionError("there is no room for it")
            assert refused.value.status == 503 and error_headers(refused.value)
            assert budget.taken == 60
            async with budget.body(parts_of(b"x" * 40), {}):
                assert budget.taken == 100
        assert budget.taken == 0

    asyncio.run(main())
