"""How OpenAI's chat and text completions are written, whole and in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from coe_cli.core.answers.token_bytes import TokenLogprob, token_text
from coe_cli.errors import CoeError
from coe_cli.runtime.server.answer_parts import Choice, Part
from coe_cli.runtime.server.http_errors import error_object
from coe_cli.runtime.server.streaming import About, Shape

if TYPE_CHECKING:
    from coe_cli.runtime.server.openai_api import Generation

_encode = msgspec.json.Encoder().encode
_REST = b',"logprobs":null,"finish_reason":null}'
_LEAST_LOGPROB = -9999.0
"""In place of minus infinity, which JSON has not."""


class ChatShape(Shape):
    """How a chat completion is written."""

    prefix, name, chunk_name = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, request: Generation) -> None:
        self._include_usage, self._counts_each = request.include_usage, request.counts_each
        self._timed, self._progress = request.timings_per_token, request.return_progress
        self._tells, self._echoed = request.tells_logprobs, request.echoed()
        self._wraps: dict[tuple[int, str], tuple[bytes, bytes]] = {}

    def delta(self, field: str) -> tuple[bytes, bytes]:
        """The JSON before and after the text of a delta."""
        key = b'{"reasoning_content":' if field == "thinking" else b'{"content":'
        return b'"delta":' + key, b"}" + _REST

    def first(self, index: int) -> bytes:
        return b'"delta":{"role":"assistant","content":""}' + _REST

    def last(self, reason: str) -> bytes:
        return b'"delta":{},"logprobs":null,"finish_reason":' + _encode(reason) + b"}"

    def message(self, choice: Choice) -> dict[str, Any]:
        """One whole choice."""
        calls = [_call(c.id, c.name, c.arguments) for c in choice.calls]
        made = chat_choice(choice.index, choice.text, choice.thoughts, choice.reason, calls)
        return made | self._logprobs_of(choice)

    def _logprobs_of(self, choice: Choice) -> dict[str, Any]:
        """The field of a whole choice, where it was asked for."""
        return {"logprobs": self.logprobs(choice.index, choice.new_logprobs())} if self._tells else {}

    def logprobs(self, index: int, found: list[TokenLogprob]) -> dict[str, Any]:
        """The log probabilities of a choice's next tokens."""
        return {"content": told_tokens(found), "refusal": None}

    # --- in chunks

    def begin(self, about: About) -> bytes:
        self._head = b"data: " + _encode(self._fields(self.chunk_name, about)).rstrip(b"}")
        self._about = about
        self._after = b"]" + (b',"usage":null' if self._include_usage and not self._counts_each else b"") + b"}\n\n"
        firsts = []
        for choice in about.choices:
            told = {"coe": about.coe()} | ({"prompt_progress": choice.progress()} if self._progress else {})
            firsts.append(_with(self._before(choice.index) + self.first(choice.index) + self._after, told))
        return b"".join(firsts)

    def parts(self, choice: Choice, parts: list[Part]) -> bytes:
        return b"".join([self._counted(choice, self._part(choice, part)) for part in parts])

    def _counted(self, choice: Choice, chunk: bytes) -> bytes:
        """A chunk with what is to be told of the answer by now."""
        if not (self._timed or self._counts_each):
            return chunk
        told: dict[str, Any] = {"usage": self._about.usage()} if self._counts_each else {}
        return _with(chunk, told | ({"timings": choice.timings()} if self._timed else {}))

    def _with_logprobs(self, choice: Choice, end: bytes) -> bytes:
        """``end`` of a chunk, in which their place is the first that is null."""
        new = choice.new_logprobs()
        return end.replace(b"null", _encode(self.logprobs(choice.index, new)), 1) if new else end

    def _part(self, choice: Choice, part: Part) -> bytes:
        index = choice.index
        if part.kind == "call":
            named: dict[str, Any] = {"id": part.id, "type": "function"} if part.name is not None else {}
            function = (
                {"name": part.name, "arguments": part.text} if part.name is not None else {"arguments": part.text}
            )
            call = {"index": part.call, **named, "function": function}
            end = self._with_logprobs(choice, b"]}" + _REST)
            return self._before(index) + b'"delta":{"tool_calls":[' + _encode(call) + end + self._after
        wrap = self._wraps.get((index, part.kind))
        if wrap is None:  # every delta is wrapped in the same bytes: only its text is encoded anew
            start, end = self.delta(part.kind)
            wrap = self._wraps[index, part.kind] = (self._before(index) + start, end + self._after)
        return wrap[0] + _encode(part.text) + self._with_logprobs(choice, wrap[1])

    def end_of(self, choice: Choice) -> bytes:
        chunk = self._before(choice.index) + self._with_logprobs(choice, self.last(choice.reason)) + self._after
        if choice.finished is not None and choice.finished.notes:
            chunk = _with(chunk, {"coe": {"notes": choice.finished.notes}})
        return self._counted(choice, chunk)

    def end(self, about: About) -> bytes:
        usage = b""
        if self._include_usage:
            usage = self._head + b',"choices":[],"usage":' + _encode(about.usage()) + b"}\n\n"
            usage = _with(usage, self._timings(about))
        return usage + b"data: [DONE]\n\n"

    def failed(self, error: CoeError) -> bytes:
        return b"data: " + _encode(error_object(error)) + b"\n\n"

    def _before(self, index: int) -> bytes:
        return self._head + b',"choices":[{"index":%d,' % index

    # --- whole

    def whole(self, about: About) -> dict[str, Any]:
        fields = self._fields(self.name, about)
        fields["choices"] = [self.message(choice) for choice in about.choices]
        return fields | {"usage": about.usage(), "coe": about.coe()} | self._timings(about)

    def _timings(self, about: About) -> dict[str, Any]:
        return {"timings": about.choices[0].timings()} if self._timed else {}

    def _fields(self, kind: str, about: About) -> dict[str, Any]:
        return head_fields(kind, self.prefix + about.id, about.created, about.model, about.fingerprint)


class TextShape(ChatShape):
    """How a plain completion is written."""

    prefix, name, chunk_name = "cmpl-", "text_completion", "text_completion"
    splits_thinking = False

    def __init__(self, request: Generation) -> None:
        super().__init__(request)
        self._offsets = [len(text) for text in self._echoed]

    def delta(self, field: str) -> tuple[bytes, bytes]:
        return b'"text":', _REST

    def first(self, index: int) -> bytes:
        return b'"text":' + _encode(self._echoed[index]) + _REST

    def last(self, reason: str) -> bytes:
        return b'"text":"","logprobs":null,"finish_reason":' + _encode(reason) + b"}"

    def message(self, choice: Choice) -> dict[str, Any]:
        made = text_choice(choice.index, self._echoed[choice.index] + choice.text, choice.reason)
        return made | self._logprobs_of(choice)

    def logprobs(self, index: int, found: list[TokenLogprob]) -> dict[str, Any]:
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for each in found:
            likeliest = {token_text(token): _finite(logprob) for token, logprob, _ in each.top}
            text = token_text(each.token)
            told["tokens"].append(text)
            told["token_logprobs"].append(_finite(each.logprob))
            told["top_logprobs"].append({**likeliest, text: _finite(each.logprob)} if likeliest else None)
            told["text_offset"].append(self._offsets[index])
            self._offsets[index] += sum(byte & 0xC0 != 0x80 for byte in each.token)  # bytes that begin a character
        return told


def chat_choice(
    index: int, text: str, thoughts: str, reason: str, calls: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """A whole choice of a chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if thoughts:
        message["reasoning_content"] = thoughts
    if calls:
        message |= {"content": text or None, "tool_calls": calls}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


def text_choice(index: int, text: str, reason: str) -> dict[str, Any]:
    """A whole choice of a plain completion."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)


def told_tokens(found: list[TokenLogprob], *, ids: bool = False) -> list[dict[str, Any]]:
    """Each token with its log probability, and the likeliest in its place; with ``ids`` as llama.cpp tells them."""

    def told(token: bytes, logprob: float, number: int) -> dict[str, Any]:
        fields = {"token": token_text(token), "logprob": _finite(logprob), "bytes": list(token)}
        return {"id": number, **fields} if ids else fields

    return [told(e.token, e.logprob, e.id) | {"top_logprobs": [told(*other) for other in e.top]} for e in found]


def _with(chunk: bytes, fields: dict[str, Any]) -> bytes:
    """A chunk with more fields at its end."""
    return chunk.removesuffix(b"}\n\n") + b"," + _encode(fields)[1:] + b"\n\n" if fields else chunk


def _call(made: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": made, "type": "function", "function": {"name": name, "arguments": arguments}}


def head_fields(
    kind: str, completion_id: str, created: int, model: str, fingerprint: str | None = None
) -> dict[str, Any]:
    """How a completion, and each of its chunks, begins as OpenAI has it; ``created`` is in seconds since 1970."""
    return {"id": completion_id, "object": kind, "created": created, "model": model, "system_fingerprint": fingerprint}
