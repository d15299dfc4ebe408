"""What a client may take of the college's connections and memory: half-sent heads, many connections, bodies in flight."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest
import uvicorn

from coe_cli.runtime.server.connections import MAX_HEAD_BYTES, bounded_protocol
from coe_cli.runtime.server.guard import BodyBudget
from coe_cli.runtime.server.http_errors import HttpError, error_headers

WHOLE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def served(
    test: Callable[[int, list[int]], Awaitable[None]], *, connections: int = 8, head_wait_s: float = 0.3
) -> None:
    """Run ``test`` with the port of a server whose answers take 0.6 s, and the statuses that it has begun to give."""
    begun: list[int] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        begun.append(200)
        await asyncio.sleep(0.6)  # longer than a head may take: a request in progress is never cut off
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        protocol = bounded_protocol(connections, head_wait_s)
        config = uvicorn.Config(application, http=protocol, lifespan="off", log_config=None, interface="asgi3")
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await asyncio.wait_for(test(listener.getsockname()[1], begun), 30)
        finally:
            server.should_exit = True
            await running
            listener.close()

    asyncio.run(main())


async def sent(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def test_a_head_that_comes_byte_by_byte_is_given_up_and_others_are_answered() -> None:
    async def test(port: int, begun: list[int]) -> None:
        slow = asyncio.create_task(sent(port, *(WHOLE[:20][i : i + 1] for i in range(20)), pause_s=0.1))
        silent = asyncio.create_task(sent(port))
        good = await sent(port, WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert good.startswith(b"HTTP/1.1 200") and good.endswith(b"ok")
        for given in await asyncio.gather(slow, silent):
            assert given == b"" or given.startswith(b"HTTP/1.1 408")
        assert begun == [200]

    served(test)


def test_a_second_request_on_the_connection_has_its_own_time() -> None:
    async def test(port: int, begun: list[int]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(WHOLE[:10])
            await asyncio.sleep(0.1)
            writer.write(WHOLE[10:])
            assert b"200" in await reader.readuntil(b"ok")
        writer.write(WHOLE[:10])
        assert (await reader.read()).startswith(b"HTTP/1.1 408")
        writer.close()
        assert begun == [200, 200]

    served(test)


def test_a_head_without_end_is_refused() -> None:
    async def test(port: int, begun: list[int]) -> None:
        lines = [b"X-%d: %s\r\n" % (number, b"x" * 8000) for number in range(3 * MAX_HEAD_BYTES // 8000)]
        answer = await sent(port, b"GET / HTTP/1.1\r\nHost: a\r\n", *lines, pause_s=0.001)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
        assert begun == []

    served(test, head_wait_s=20)


def test_more_connections_than_allowed_are_told_to_come_back() -> None:
    async def test(port: int, begun: list[int]) -> None:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
        answer = await sent(port)
        assert answer.startswith(b"HTTP/1.1 503") and b"Retry-After: 1\r\n" in answer
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.2)
        good = await sent(port, WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert good.startswith(b"HTTP/1.1 200")

    served(test, head_wait_s=20)


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
