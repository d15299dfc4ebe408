"""Nothing that waits for a disk, a process or a network runs on the college's event loop while it answers."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL

from coe_cli.runtime.college.chat_request import AUTO, ChatRequest
from coe_cli.runtime.college.resolver import RequestResolver
from coe_cli.runtime.folders import Folders, catalog_paths, profile_paths
from coe_cli.runtime.routing.shared_router import SharedRouter
from coe_cli.runtime.server.discovery import CollegeState
from coe_cli.runtime.server.server import Server
from coe_cli.runtime.settings import load_catalog, load_profiles
from coe_cli.runtime.worker.protocol import ChatMessage

BLOCKING = {
    "open",
    "os.listdir",
    "os.scandir",
    "os.mkdir",
    "os.rename",
    "subprocess.Popen",
    "socket.connect",
    "fcntl.flock",
}
_seen: list[str] = []
_watched: int | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in BLOCKING and threading.get_ident() == _watched:
        _seen.append(f"{event} {arguments[:1]}")


sys.addaudithook(_audit)  # for good: there is no taking one away


def blocking_calls(
    job: Callable[[], Awaitable[object]], before: Callable[[], Awaitable[object]] | None = None
) -> list[str]:
    """What ``job`` did on the loop's thread that may block, after ``before`` (or itself, once) has warmed everything."""

    async def main() -> list[str]:
        global _watched
        await (before or job)()
        _seen.clear()
        _watched = threading.get_ident()
        try:
            await job()
        finally:
            _watched = None
        return list(_seen)

    return asyncio.run(main())


@pytest.fixture
def resolver(models_dir: Path, tmp_path: Path) -> RequestResolver:
    where = Folders(models_dir, tmp_path / "config", tmp_path / "state", tmp_path / "cache")
    catalog, profile = load_catalog(catalog_paths()), load_profiles(profile_paths()).select("embedded")
    return RequestResolver(catalog, models_dir, profile, SharedRouter(catalog, where))


def test_the_watch_sees_what_blocks(tmp_path: Path) -> None:
    async def look() -> None:
        list(tmp_path.iterdir())

    assert any(call.startswith("os.listdir") or call.startswith("os.scandir") for call in blocking_calls(look))


@pytest.mark.parametrize("name", [MODEL, AUTO, "general_reasoner"])
def test_settling_who_answers(resolver: RequestResolver, name: str) -> None:
    request = ChatRequest([ChatMessage("user", "Hi")], name)
    assert blocking_calls(lambda: resolver.resolve(request)) == []


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{MODEL}"])
def test_listing_models(resolver: RequestResolver, path: str) -> None:
    state = CollegeState(1, "127.0.0.1", 1, "t", "1", 0.0, "p", "m")
    server = Server(None, resolver, state, lambda drain: None)  # type: ignore[arg-type]
    sent: list[Any] = []

    async def request() -> None:
        headers = [(b"host", b"127.0.0.1:1")]
        scope = {
            "type": "http", "method": "GET", "path": path, "headers": headers, "query_string": b"", "http_version": "1.1",
            "raw_path": path.encode(), "scheme": "http", "root_path": "", "server": ("127.0.0.1", 1), "client": None,
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        class Idle:
            busy = False
            loaded_models: list[str] = []  # noqa: RUF012 - never changed

        server.college = Idle()  # type: ignore[assignment]
        await server(scope, receive, send)

    assert blocking_calls(request) == []
    assert sent[0]["status"] == 200
