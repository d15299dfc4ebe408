"""One answer over HTTP: server-sent events or one JSON object, straight to the ASGI channel, ended when the client goes.

A status can only be given before the first byte, so nothing is sent until the model has written something.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from coe_cli import __version__
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import CoeError, explained
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.resolver import ResolvedRequest
from coe_cli.runtime.college.thoughts import AnswerPieces
from coe_cli.runtime.server.http_errors import error_headers, error_object, status_of

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json")


class ChatShape:
    """How a chat completion is written."""

    prefix, name, chunk_name = "chatcmpl-", "chat.completion", "chat.completion.chunk"
    splits_thinking = True

    def piece(self, text: str, *, is_thinking: bool) -> tuple[bytes, bytes]:
        """The JSON before and after the text of one piece."""
        key = b'{"reasoning_content":' if is_thinking else b'{"content":'
        return b'"delta":' + key, b'},"logprobs":null,"finish_reason":null}'

    def first(self) -> bytes | None:
        return b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'

    def last(self, reason: str) -> bytes:
        return b'"delta":{},"logprobs":null,"finish_reason":' + encode(reason) + b"}"

    def whole(self, text: str, thoughts: str, reason: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if thoughts:
            message["reasoning_content"] = thoughts
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}


class TextShape:
    """How a plain completion is written."""

    prefix, name, chunk_name = "cmpl-", "text_completion", "text_completion"
    splits_thinking = False

    def piece(self, text: str, *, is_thinking: bool) -> tuple[bytes, bytes]:
        return b'"text":', b',"logprobs":null,"finish_reason":null}'

    def first(self) -> bytes | None:
        return None

    def last(self, reason: str) -> bytes:
        return b'"text":"","logprobs":null,"finish_reason":' + encode(reason) + b"}"

    def whole(self, text: str, thoughts: str, reason: str) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}


def completion(
    shape: ChatShape | TextShape,
    completion_id: str,
    created: int,
    model: str,
    choice: dict[str, Any],
    usage: dict[str, Any],
    coe: dict[str, Any],
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """A whole completion as OpenAI has it; ``created`` is in seconds since 1970, ``coe`` is our own addition."""
    return {
        "id": completion_id,
        "object": shape.name,
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [choice],
        "usage": usage,
        "coe": coe,
    }


def fingerprint_of(model: ModelSpec) -> str:
    """OpenAI's ``system_fingerprint``: another one where the same seed may give another answer."""
    made_of = f"{__version__} {model.name} {model.provider} {model.stamp}"
    return "fp_" + hashlib.sha256(made_of.encode()).hexdigest()[:10]


async def until_client_goes(receive: Receive, job: Callable[[], Awaitable[None]]) -> None:
    """Run ``job``; when the client disconnects first, cancel it and wait until it has cleaned up."""
    task = asyncio.ensure_future(job())
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_json(
    send: Send, status: int, value: Any, headers: list[tuple[bytes, bytes]] | None = None, body: bytes | None = None
) -> None:
    """One whole JSON response."""
    data = encode(value) if body is None else body
    length = (b"content-length", str(len(data)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *(headers or [])]})
    await send({"type": "http.response.body", "body": data})


async def send_error(send: Send, error: CoeError) -> None:
    """A whole response in OpenAI's shape."""
    await send_json(send, status_of(error), error_object(error), error_headers(error))


class HttpAnswer:
    """An ASGI application that answers one resolved request."""

    background = None

    def __init__(
        self,
        college: College,
        resolved: ResolvedRequest,
        shape: ChatShape | TextShape,
        *,
        stream: bool,
        include_usage: bool = False,
    ) -> None:
        if not stream:
            resolved = resolved._replace(ask=msgspec.structs.replace(resolved.ask, buffered=True))
        self._college, self._resolved, self._shape = college, resolved, shape
        self._stream, self._include_usage = stream, include_usage
        self._id = shape.prefix + secrets.token_hex(12)
        self._created = int(time.time())
        self._reading: ce.PrefillStarted | None = None
        self._ended: list[str] = []
        self._sent = False

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        await until_client_goes(receive, lambda: self._answer(send))

    async def _answer(self, send: Send) -> None:
        try:
            await (self._answer_in_chunks(send) if self._stream else self._answer_whole(send))
        except ConnectionError:
            raise
        except Exception as failure:
            error = explained(failure)
            if error is not failure:
                logging.getLogger("uvicorn.error").exception("an answer failed")
            if not self._sent:
                await send_error(send, error)
            else:
                await self._send_last(send, b"data: " + encode(error_object(error)) + b"\n\n")

    async def _answer_whole(self, send: Send) -> None:
        pieces = self._pieces()
        parts: dict[bool, list[str]] = {False: [], True: []}
        async with contextlib.aclosing(self._college.ask(self._resolved.ask)) as events:
            async for event in events:
                for text, is_thinking in pieces.of(event):
                    parts[is_thinking].append(text)
                if isinstance(event, ce.PrefillStarted):
                    self._reading = event
                elif isinstance(event, ce.Finished):
                    finished, self._ended = event, event.notes
        choice = self._shape.whole("".join(parts[False]), "".join(parts[True]), _reason(finished))
        answer = completion(
            self._shape,
            self._id,
            self._created,
            self._resolved.ask.model.name,
            choice,
            self._usage(finished),
            self._coe(),
            fingerprint_of(self._resolved.ask.model),
        )
        await send_json(send, 200, answer, note_header(self._notes))

    async def _answer_in_chunks(self, send: Send) -> None:
        pieces = self._pieces()
        head = b"data: " + encode(
            {
                "id": self._id,
                "object": self._shape.chunk_name,
                "created": self._created,
                "model": self._resolved.ask.model.name,
                "system_fingerprint": fingerprint_of(self._resolved.ask.model),
            }
        ).rstrip(b"}")
        usage = b',"usage":null' if self._include_usage else b""
        before, after = head + b',"choices":[{"index":0,', b"]" + usage + b"}\n\n"
        # Every piece is wrapped in the same bytes: only its text is encoded anew.
        wrap = {
            thinking: (before + start, end + after)
            for thinking in (False, True)
            for start, end in (self._shape.piece("", is_thinking=thinking),)
        }
        async with contextlib.aclosing(self._college.ask(self._resolved.ask)) as events:
            async for event in events:
                found = pieces.of(event)
                if isinstance(event, ce.PrefillStarted):
                    self._reading = event
                if not isinstance(event, ce.Delta | ce.Finished):
                    continue
                data = b"".join([wrap[thinks][0] + encode(text) + wrap[thinks][1] for text, thinks in found])
                if not self._sent:
                    await self._begin(send)
                    data = self._first_chunk(before, after) + data
                if isinstance(event, ce.Finished):
                    data += self._last_chunk(event, before, after)
                    if self._include_usage:
                        data += head + b',"choices":[],"usage":' + encode(self._usage(event)) + b"}\n\n"
                    await self._send_last(send, data + b"data: [DONE]\n\n")
                elif data:
                    await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _begin(self, send: Send) -> None:
        self._sent = True
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            *note_header(self._notes),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    def _first_chunk(self, before: bytes, after: bytes) -> bytes:
        """The role, and who answers."""
        first = self._shape.first() or b'"text":"","logprobs":null,"finish_reason":null}'
        return before + first + after.replace(b"}\n\n", b',"coe":' + encode(self._coe()) + b"}\n\n")

    def _last_chunk(self, event: ce.Finished, before: bytes, after: bytes) -> bytes:
        """How the answer ended, and what is to be said of that."""
        if event.notes:
            after = after.replace(b"}\n\n", b',"coe":' + encode({"notes": event.notes}) + b"}\n\n")
        return before + self._shape.last(_reason(event)) + after

    async def _send_last(self, send: Send, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": False})

    def _pieces(self) -> AnswerPieces:
        return AnswerPieces(splits_thinking=self._shape.splits_thinking and self._resolved.ask.guidance is None)

    def _usage(self, finished: ce.Finished) -> dict[str, Any]:
        return {
            "prompt_tokens": finished.prompt_tokens,
            "completion_tokens": finished.completion_tokens,
            "total_tokens": finished.prompt_tokens + finished.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._reading.reused_tokens if self._reading else 0},
        }

    @property
    def _notes(self) -> list[str]:
        chosen = [note.text for note in self._resolved.told.notes]
        return chosen + (self._reading.notes if self._reading is not None else []) + self._ended

    def _coe(self) -> dict[str, Any]:
        reading = self._reading
        return {
            "expert": self._resolved.told.expert,
            "model": self._resolved.ask.model.name,
            "load_s": reading.load_s if reading else None,
            "reused_tokens": reading.reused_tokens if reading else 0,
            "notes": self._notes,
        }


def note_header(notes: list[str]) -> list[tuple[bytes, bytes]]:
    """``X-Coe-Note``, in the characters that a header may have."""
    if not notes:
        return []
    text = " | ".join(notes).encode("ascii", "replace").decode()
    return [(b"x-coe-note", "".join(c if c.isprintable() else " " for c in text).encode())]


def _reason(finished: ce.Finished) -> str:
    return "length" if finished.finish_reason == "length" else "stop"
