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
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

import msgspec

from coe_cli import __version__
from coe_cli.core.answers.limits import SEED
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import CoeError, explained
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import Resolved
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.resolver import ResolvedRequest
from coe_cli.runtime.server.answer_parts import Choice, Part
from coe_cli.runtime.server.http_errors import error_body, error_headers, name_field, status_of

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json")


class About:
    """What an answer says of itself, whatever the API."""

    def __init__(self, told: Resolved, model: ModelSpec, choices: Sequence[Choice]) -> None:
        self.id = secrets.token_hex(12)
        self.created = int(time.time())
        self.model, self.context_length = model.name, told.context_length
        self.fingerprint = fingerprint_of(model)
        self._told, self.choices, self._all = told, choices, choices

    @property
    def notes(self) -> list[str]:
        """All that is to be said of the answer, each thing once."""
        notes = [note.text for note in self._told.notes]
        for choice in self.choices:
            notes += choice.prefill.notes if choice.prefill is not None else []
            notes += choice.finished.notes if choice.finished is not None else []
        return list(dict.fromkeys(notes))

    def coe(self) -> dict[str, Any]:
        """Our own addition: who answers."""
        prefill = next((choice.prefill for choice in self.choices if choice.prefill is not None), None)
        return {
            "expert": self._told.expert,
            "model": self.model,
            "load_s": prefill.load_s if prefill else None,
            "reused_tokens": prefill.reused_tokens if prefill else 0,
            "notes": self.notes,
            **({"routing": ranking} if (ranking := self._ranking()) else {}),
        }

    def _ranking(self) -> list[dict[str, Any]]:
        """The experts that the router found likeliest, where it was asked."""
        decision = self._told.routing.decision if self._told.routing is not None else None
        best = decision.ranking[:3] if decision is not None else []
        return [{"expert": each.name, "score": round(each.probability, 3)} for each in best]

    def usage(self) -> dict[str, Any]:
        """OpenAI's count of the tokens; a prompt counts once however many answers it has."""
        read = [choice.prefill for choice in self._all if choice.prefill is not None and choice.begins_prompt]
        prompt_tokens = sum(each.prompt_tokens for each in read)
        completion_tokens = sum(choice.completion_tokens for choice in self._all)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(each.reused_tokens for each in read)},
        }

    def keep_best(self, n: int, best_of: int) -> None:
        """Of every ``best_of`` answers the ``n`` likeliest, best first."""
        groups = [self._all[at : at + best_of] for at in range(0, len(self._all), best_of)]
        self.choices = [each for group in groups for each in sorted(group, key=lambda choice: -choice.likelihood)[:n]]
        for index, choice in enumerate(self.choices):
            choice.index = index


class Shape(Protocol):
    """How an API writes an answer: in chunks as it comes, or whole."""

    content_type: bytes = b"text/event-stream; charset=utf-8"
    splits_thinking: bool = True
    names: Mapping[str, str] = {}
    """What the API calls the fields of a chat completion, as ``http_errors.renamed`` takes it."""

    def begin(self, about: About) -> bytes: ...

    def parts(self, choice: Choice, parts: list[Part]) -> bytes: ...

    def end_of(self, choice: Choice) -> bytes: ...

    def end(self, about: About) -> bytes: ...

    def failed(self, error: CoeError) -> bytes: ...

    def whole(self, about: About) -> dict[str, Any]: ...


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


async def send_whole(send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes = b"") -> None:
    """One whole response."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, value: Any, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """One whole JSON response."""
    data = encode(value)
    await send_whole(send, status, [_JSON, (b"content-length", str(len(data)).encode()), *headers], data)


async def send_error(send: Send, error: CoeError, path: str = "") -> None:
    """A whole response in the shape of the API that ``path`` belongs to."""
    await send_json(send, status_of(error), error_body(error, path), error_headers(error))


class HttpAnswer:
    """An ASGI application that answers resolved requests as the choices of one answer, ``n`` for each prompt.

    ``best_of``: of so many answers to each prompt the ``n`` likeliest are given; not in chunks.
    """

    background = None

    def __init__(
        self,
        college: College,
        resolved: Sequence[ResolvedRequest],
        shape: Shape,
        *,
        stream: bool,
        n: int = 1,
        best_of: int | None = None,
    ) -> None:
        self._n, self._each = n, best_of or n
        self._asks = [_nth(each.ask, number, stream=stream) for each in resolved for number in range(self._each)]
        if self._each > n:  # it is by them that the best are found
            self._asks = [msgspec.structs.replace(ask, logprobs=ask.logprobs or 0) for ask in self._asks]
        self._choices = [
            Choice(index, ask, splits_thinking=shape.splits_thinking, begins_prompt=index % self._each == 0)
            for index, ask in enumerate(self._asks)
        ]
        self._college, self._shape, self._stream = college, shape, stream
        self._about = About(resolved[0].told, resolved[0].ask.model, self._choices)
        self._sent = False

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        await until_client_goes(receive, lambda: self._answer(send, scope["path"]))

    async def _answer(self, send: Send, path: str) -> None:
        try:
            await (self._answer_in_chunks(send) if self._stream else self._answer_whole(send))
        except ConnectionError:
            raise
        except Exception as failure:
            error = explained(failure)
            name_field(error, self._asks[0], self._shape.names)
            if error is not failure:
                logging.getLogger("uvicorn.error").exception("an answer failed")
            if not self._sent:
                await send_error(send, error, path)
            else:
                await self._send_last(send, self._shape.failed(error))

    async def _events(self) -> AsyncGenerator[tuple[Choice, ce.CollegeEvent], None]:
        """The events of all choices as they come; closing it cancels them."""
        if len(self._asks) == 1:
            async with contextlib.aclosing(self._college.ask(self._asks[0])) as events:
                async for event in events:
                    yield self._choices[0], event
            return
        inbox: asyncio.Queue[tuple[Choice, ce.CollegeEvent | Exception | None]] = asyncio.Queue()

        async def run(choice: Choice, ask: ce.Ask) -> None:
            try:
                async with contextlib.aclosing(self._college.ask(ask)) as events:
                    async for event in events:
                        inbox.put_nowait((choice, event))
            except Exception as error:
                inbox.put_nowait((choice, error))
            inbox.put_nowait((choice, None))

        tasks = [asyncio.ensure_future(run(*pair)) for pair in zip(self._choices, self._asks, strict=True)]
        try:
            left = len(tasks)
            while left:
                choice, found = await inbox.get()
                if isinstance(found, Exception):
                    raise found
                if found is None:
                    left -= 1
                else:
                    yield choice, found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer_whole(self, send: Send) -> None:
        async with contextlib.aclosing(self._events()) as events:
            async for choice, event in events:
                choice.feed(event)
        self._about.keep_best(self._n, self._each)
        answer = self._shape.whole(self._about)
        await send_json(send, 200, answer, note_header(self._about.notes))

    async def _answer_in_chunks(self, send: Send) -> None:
        async with contextlib.aclosing(self._events()) as events:
            async for choice, event in events:
                parts = choice.feed(event)
                if not isinstance(event, ce.Delta | ce.Finished):
                    continue
                data = b""
                if not self._sent:
                    await self._begin(send)
                    data = self._shape.begin(self._about)
                data += self._shape.parts(choice, parts)
                if isinstance(event, ce.Finished):
                    data += self._shape.end_of(choice)
                if data:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        await self._send_last(send, self._shape.end(self._about))

    async def _begin(self, send: Send) -> None:
        self._sent = True
        headers = [
            (b"content-type", self._shape.content_type),
            (b"cache-control", b"no-cache"),
            *note_header(self._about.notes),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send_last(self, send: Send, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": False})


def _nth(ask: ce.Ask, number: int, *, stream: bool) -> ce.Ask:
    """The request of choice ``number`` to one prompt; with a seed each choice has its own."""
    replace, sampling = msgspec.structs.replace, ask.sampling
    if sampling.seed is not None:
        sampling = replace(sampling, seed=(sampling.seed + number) % (SEED.most + 1))
    return replace(ask, sampling=sampling, buffered=ask.buffered or not stream)


def note_header(notes: list[str]) -> list[tuple[bytes, bytes]]:
    """``X-Coe-Note``, in the characters that a header may have."""
    if not notes:
        return []
    text = " | ".join(notes).encode("ascii", "replace").decode()
    return [(b"x-coe-note", "".join(c if c.isprintable() else " " for c in text).encode())]
