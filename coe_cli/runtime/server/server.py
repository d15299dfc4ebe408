"""The college's HTTP server: an ASGI application that guards every request, answers coe's own and passes /v1 on.

coe's own endpoints need the token of the state file and speak JSON lines; they work before FastAPI is imported, so that a
question starts a college without waiting for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

import msgspec

from coe_cli import __version__
from coe_cli.core.routing.router import RouteRequest
from coe_cli.core.scheduling.college_status import CollegeStatus, ModelLine, PressureLine
from coe_cli.core.scheduling.scheduler_state import ModelStatus, Snapshot
from coe_cli.errors import Busy, CoeError, Draining, explained
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.answering import answer
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.resolver import RequestResolver
from coe_cli.runtime.folders import folders
from coe_cli.runtime.server.discovery import CollegeState, proof
from coe_cli.runtime.server.guard import BodyBudget, Guard, Headers, replay
from coe_cli.runtime.server.http_errors import HttpError
from coe_cli.runtime.server.page import page
from coe_cli.runtime.server.serve_options import ServeOptions
from coe_cli.runtime.server.streaming import Receive, Send, send_error, send_json, send_whole, until_client_goes

ACCESS_LOG = logging.getLogger("coe.access")
PROMPT_LOG = logging.getLogger("coe.prompts")
FAILURE_LOG = logging.getLogger("uvicorn.error")

_encode = msgspec.json.Encoder().encode
_MAX_NONCE = 128
_BEAT_S = 1.0
_LARGE_BYTES = 262_144
_HEALTH_PATHS = ("/healthz", "/health", "/v1/health")
_LLAMA_PATHS = ("/completion", "/infill", "/tokenize", "/detokenize", "/apply-template", "/props", "/slots")
_API_PATHS = ("/v1/", "/api/", *_LLAMA_PATHS, "/openapi.json")
_ALIASES = {
    path: f"/v1{path}"
    for path in ("/chat/completions", "/completions", "/models", "/embeddings", "/responses", "/messages")
}
"""Addresses as clients ask that were given the base URL without /v1."""
_OF_POOL = set(ModelLine.__struct_fields__) & set(ModelStatus.__struct_fields__)
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


class _StopOptions(msgspec.Struct, frozen=True):
    drain: bool = False


class _UnloadOptions(msgspec.Struct, frozen=True):
    model: str


class Server:
    """``stop`` is called with whether running answers are to be finished first."""

    def __init__(
        self,
        college: College,
        resolver: RequestResolver,
        state: CollegeState,
        stop: Callable[[bool], None],
        options: ServeOptions = ServeOptions(),
        api_key: str | None = None,
    ) -> None:
        self.college, self.resolver, self.state = college, resolver, state
        self.draining = False
        self.device: str | None = None
        self._stop = stop
        self._log_prompts = options.log_prompts
        self._guard = Guard(state.host, state.port, api_key, state.token, options.allowed_hosts, options.cors_origins)
        self._page = options.page
        self._batch_options = options.for_batch()
        self._begin = self._last_request_at = time.monotonic()
        self._in_flight = 0
        self._bodies = BodyBudget()
        self._responses: Counter[tuple[str, int]] = Counter()
        self._openai: Any = None
        self._own = {"/coe/ask": self._ask, "/coe/route": self._route, "/coe/stop": self._end, "/coe/unload": self._unload}  # fmt: skip
        self._paths = {"/", *_HEALTH_PATHS, "/metrics", "/coe/snapshot", *self._own}
        self._building = asyncio.Lock()
        self._large = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """Whether any answer has not been sent to its end."""
        return self._in_flight > 0 or self.college.busy

    @property
    def idle_s(self) -> float:
        """Seconds since the last request for an answer ended; 0 while one runs. Looking on does not count."""
        if self.busy:
            return 0.0
        return time.monotonic() - self._last_request_at

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begin, status = time.monotonic(), 0
        path, method = _ALIASES.get(scope["path"], scope["path"]), scope["method"]
        scope = {**scope, "path": path}
        request_id = _request_id(scope["headers"])
        if method == "HEAD":
            scope = {**scope, "method": "GET"}

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = (b"x-request-id", request_id)
                cors = self._guard.cors_headers(dict(scope["headers"]))
                message["headers"] = [*message.get("headers", ()), told, *cors]
            elif method == "HEAD":
                message["body"] = b""
            await send(message)

        counts = method == "POST" and path.startswith((*_API_PATHS, "/coe/ask"))
        self._in_flight += counts
        try:
            await self._guarded(scope, receive, noting)
        except ConnectionError:
            pass
        finally:
            if counts:
                self._in_flight -= 1
                self._last_request_at = time.monotonic()
            known = getattr(scope.get("route"), "path", path)  # with {name} for a part that is a name
            self._responses[known if known in self._paths else "other", status or 499] += 1
            ACCESS_LOG.info(
                "%s %s %s %s %.0f ms",
                (scope.get("client") or ("-",))[0],
                method,
                path.encode("unicode_escape").decode()[:200],
                status or 499,
                (time.monotonic() - begin) * 1000,
            )

    async def _guarded(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        headers: Headers = dict(scope["headers"])
        try:
            self._guard.check_origin(headers)
            if method == "OPTIONS" and b"access-control-request-method" in headers and not path.startswith("/coe/"):
                await send_whole(send, 204, self._guard.preflight(headers))
                return
            if path in _HEALTH_PATHS:
                _allow(method, "GET")
                await self._health(scope, send)
            elif path == "/" and self._page:
                _allow(method, "GET")
                body, told = page()
                await send_whole(send, 200, told, body)
            elif path.startswith("/coe/"):
                self._guard.check_token(headers)
                await self._for_coe(scope, headers, receive, send)
            elif path == "/metrics":
                _allow(method, "GET")
                self._guard.check_key(headers)
                await self._metrics(send)
            elif path.startswith(_API_PATHS):
                self._guard.check_key(headers)
                if self.draining and method == "POST":
                    raise Draining("the college is ending", "Ask another one.")
                async with self._bodies.body(receive, headers) as body:
                    if self._log_prompts and body:
                        PROMPT_LOG.info("%s %s", path, body.decode("utf-8", "backslashreplace"))
                    if path.startswith("/api/"):  # Ollama's clients do not always say that they send JSON
                        told = [each for each in scope["headers"] if each[0] != b"content-type"]
                        scope["headers"] = [*told, (b"content-type", b"application/json")]
                    application = await self.openai()
                    if len(body) > _LARGE_BYTES:
                        async with self._large:  # taking one in holds the loop up: between two it serves others
                            await asyncio.sleep(0)
                    await application(scope, replay(body, receive), send)
            else:
                raise HttpError(404, "there is nothing here", "See /openapi.json.", code="not_found")
        except CoeError as error:
            await send_error(send, error, path)

    async def openai(self) -> Any:
        """The FastAPI application, imported in a thread at its first use so that running answers go on."""
        async with self._building:
            if self._openai is None:
                self._openai = await asyncio.to_thread(_build, self.college, self.resolver, self._batch_options)
                self._paths |= {route.path for route in self._openai.routes}
        return self._openai

    # --- for everybody

    async def _health(self, scope: MutableMapping[str, Any], send: Send) -> None:
        """Whether to send requests here: 200, or 503 once it ends, for balancers that ask.

        With ``?nonce=`` also the proof that it is the state file's college.
        """
        nonce = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("nonce", [""])[0]
        health = {"status": "draining" if self.draining else "ok", "version": __version__}
        if nonce and len(nonce) <= _MAX_NONCE:
            health["proof"] = proof(self.state.token, nonce)
        await send_json(send, 503 if self.draining else 200, health)

    async def _metrics(self, send: Send) -> None:
        from coe_cli.runtime.server.metrics import prometheus_text

        snapshot = self.college.snapshot()
        body = prometheus_text(self.status(snapshot), snapshot, self._responses, self.college.counters)
        await send_whole(send, 200, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")], body)

    # --- for coe itself

    async def _for_coe(self, scope: MutableMapping[str, Any], headers: Headers, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/coe/snapshot":
            _allow(method, "GET")
            await send_json(send, 200, self.status())
            return
        if path not in self._own:
            raise HttpError(404, "there is nothing here", "See /openapi.json.", code="not_found")
        _allow(method, "POST")
        async with self._bodies.body(receive, headers) as body:
            await self._own[path](body, receive, send)

    async def _route(self, body: bytes, receive: Receive, send: Send) -> None:
        request = _decode(body, RouteRequest)
        routed = await asyncio.to_thread(self.resolver.router.answer, request, self.college.loaded_models)
        if routed is None:
            raise HttpError(409, "this college routes by other examples", code="other_examples")
        await send_json(send, 200, routed)

    async def _end(self, body: bytes, receive: Receive, send: Send) -> None:
        drain = _decode(body or b"{}", _StopOptions).drain
        await send_json(send, 202, {"pid": self.state.pid})
        self._stop(drain)

    async def _unload(self, body: bytes, receive: Receive, send: Send) -> None:
        model = _decode(body, _UnloadOptions).model
        line = next((m for m in self.status().models if m.name == model), None)
        if line is None:
            raise HttpError(404, f"model `{model}` is not loaded", "See `coe ps`.", code="model_missing")
        self.college.unload(model)
        await send_json(send, 202, line)

    async def _ask(self, body: bytes, receive: Receive, send: Send) -> None:
        request = _decode(body, ChatRequest)
        if self._log_prompts:
            PROMPT_LOG.info("/coe/ask %s", body.decode("utf-8", "backslashreplace"))
        await until_client_goes(receive, lambda: self._answer(request, send))

    async def _answer(self, request: ChatRequest, send: Send) -> None:
        """Events of one answer, one JSON object a line, errors among them; an empty line each second."""
        headers = [(b"content-type", b"application/jsonl"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        heartbeat = asyncio.create_task(_beat(send))
        try:
            await self._send_events(request, send)
        finally:
            heartbeat.cancel()

    async def _send_events(self, request: ChatRequest, send: Send) -> None:
        try:
            async with contextlib.aclosing(answer(self.college, self.resolver, request)) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": _encode(event) + b"\n", "more_body": True})
        except Exception as failure:
            error = explained(failure)
            if error is not failure:
                FAILURE_LOG.exception("an answer failed")
            retry_after_s = error.retry_after_s if isinstance(error, Busy) else None
            broken = ce.Broken(error.code, error.message, error.hint, retry_after_s)
            await send({"type": "http.response.body", "body": _encode(broken) + b"\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def status(self, snapshot: Snapshot | None = None) -> CollegeStatus:
        """What `coe ps` shows."""
        pool = snapshot or self.college.snapshot()
        workers = self.college.workers()
        lines = []
        for model in pool.models:
            pid, measured_mb, context_length = workers.get(model.name, (None, None, None))
            if pid is None and model.state == "absent" and not model.waiting:
                continue
            lines.append(
                ModelLine(
                    pid=pid,
                    context_length=context_length,
                    measured_mb=None if measured_mb is None else round(measured_mb, 1),
                    written_tokens=self.college.counters.written(model.name),
                    slots=self.college.slots(model.name),
                    **{key: getattr(model, key) for key in _OF_POOL},
                )
            )
        return CollegeStatus(
            pid=os.getpid(),
            url=self.state.url,
            profile=self.state.profile,
            uptime_s=round(time.monotonic() - self._begin, 1),
            models=lines,
            pressure=PressureLine(round(pool.pressure, 4), pool.level),
            usage_mb=round(pool.usage_mb, 1),
            pool_mb=pool.pool_mb,
            queue_length=pool.queue_length,
            notices=list(self.college.notices),
            device=self.device,
        )

    async def statuses(self, interval_s: float) -> AsyncIterator[CollegeStatus]:
        """The status now and then."""
        while True:
            yield self.status()
            await asyncio.sleep(interval_s)


async def _beat(send: Send) -> None:
    """Empty lines, which wake a client that waits: on Windows a wait without an end does not see Ctrl-C."""
    while True:
        await asyncio.sleep(_BEAT_S)
        await send({"type": "http.response.body", "body": b"\n", "more_body": True})


def _build(college: College, resolver: RequestResolver, batch_options: list[str]) -> Any:
    from coe_cli.runtime.server.batch_store import BatchStore
    from coe_cli.runtime.server.openai_app import build_openai_app

    return build_openai_app(college, resolver, BatchStore(folders().state / "batches", batch_options))


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The client's own ``X-Request-Id``, or one for it."""
    given = next((value for name, value in headers if name == b"x-request-id"), b"")
    return given if _REQUEST_ID.fullmatch(given) else b"req_" + secrets.token_hex(12).encode()


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        told = ", ".join(allowed)
        error = HttpError(405, f"{method[:16]} is not for this address", f"Use {told}.", code="method_not_allowed")
        error.allow = told
        raise error


def _decode(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, f"the body is not what it should be: {error}", code="invalid_value") from None
