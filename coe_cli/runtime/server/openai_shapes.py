"""How OpenAI's chat and text completions are written, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from coe_cli.errors import CoeError
from coe_cli.runtime.server.answer_parts import Choice, Part
from coe_cli.runtime.server.http_errors import error_object
from coe_cli.runtime.server.streaming import About, Shape

_encode = msgspec.json.Encoder().encode


class ChatShape(Shape):
    """How a chat completion is written."""

    prefix, name, chunk_name = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, *, include_usage: bool = False, echoed: Sequence[str] = ()) -> None:
        self._include_usage, self._echoed = include_usage, echoed
        self._wraps: dict[tuple[int, str], tuple[bytes, bytes]] = {}

    def delta(self, field: str) -> tuple[bytes, bytes]:
        """The JSON before and after the text of a piece."""
        key = b'{"reasoning_content":' if field == "thinking" else b'{"content":'
        return b'"delta":' + key, b'},"logprobs":null,"finish_reason":null}'

    def first(self, index: int) -> bytes:
        return b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'

    def last(self, reason: str) -> bytes:
        return b'"delta":{},"logprobs":null,"finish_reason":' + _encode(reason) + b"}"

    def message(self, choice: Choice) -> dict[str, Any]:
        """One whole choice."""
        calls = [_call(c.id, c.name, c.arguments) for c in choice.calls]
        return chat_choice(choice.index, choice.text, choice.thoughts, choice.reason, calls)

    # --- in chunks

    def begin(self, about: About) -> bytes:
        self._head = b"data: " + _encode(self._fields(self.chunk_name, about)).rstrip(b"}")
        self._after = b"]" + (b',"usage":null' if self._include_usage else b"") + b"}\n\n"
        told = self._after.replace(b"}\n\n", b',"coe":' + _encode(about.coe()) + b"}\n\n")
        return b"".join(self._before(choice.index) + self.first(choice.index) + told for choice in about.choices)

    def parts(self, choice: Choice, parts: list[Part]) -> bytes:
        return b"".join([self._part(choice.index, part) for part in parts])

    def _part(self, index: int, part: Part) -> bytes:
        if part.kind == "call":
            named: dict[str, Any] = {"id": part.id, "type": "function"} if part.name is not None else {}
            function = (
                {"name": part.name, "arguments": part.text} if part.name is not None else {"arguments": part.text}
            )
            call = {"index": part.call, **named, "function": function}
            start, end = b'"delta":{"tool_calls":[', b']},"logprobs":null,"finish_reason":null}'
            return self._before(index) + start + _encode(call) + end + self._after
        wrap = self._wraps.get((index, part.kind))
        if wrap is None:  # every piece is wrapped in the same bytes: only its text is encoded anew
            start, end = self.delta(part.kind)
            wrap = self._wraps[index, part.kind] = (self._before(index) + start, end + self._after)
        return wrap[0] + _encode(part.text) + wrap[1]

    def end_of(self, choice: Choice) -> bytes:
        after = self._after
        if choice.finished is not None and choice.finished.notes:
            after = after.replace(b"}\n\n", b',"coe":' + _encode({"notes": choice.finished.notes}) + b"}\n\n")
        return self._before(choice.index) + self.last(choice.reason) + after

    def end(self, about: About) -> bytes:
        usage = b""
        if self._include_usage:
            usage = self._head + b',"choices":[],"usage":' + _encode(about.usage()) + b"}\n\n"
        return usage + b"data: [DONE]\n\n"

    def failed(self, error: CoeError) -> bytes:
        return b"data: " + _encode(error_object(error)) + b"\n\n"

    def _before(self, index: int) -> bytes:
        return self._head + b',"choices":[{"index":%d,' % index

    # --- whole

    def whole(self, about: About) -> dict[str, Any]:
        fields = self._fields(self.name, about)
        fields["choices"] = [self.message(choice) for choice in about.choices]
        return fields | {"usage": about.usage(), "coe": about.coe()}

    def _fields(self, kind: str, about: About) -> dict[str, Any]:
        return head_fields(kind, self.prefix + about.id, about.created, about.model, about.fingerprint)


class TextShape(ChatShape):
    """How a plain completion is written."""

    prefix, name, chunk_name = "cmpl-", "text_completion", "text_completion"
    splits_thinking = False

    def delta(self, field: str) -> tuple[bytes, bytes]:
        return b'"text":', b',"logprobs":null,"finish_reason":null}'

    def first(self, index: int) -> bytes:
        return b'"text":' + _encode(self._echoed[index]) + b',"logprobs":null,"finish_reason":null}'

    def last(self, reason: str) -> bytes:
        return b'"text":"","logprobs":null,"finish_reason":' + _encode(reason) + b"}"

    def message(self, choice: Choice) -> dict[str, Any]:
        return text_choice(choice.index, self._echoed[choice.index] + choice.text, choice.reason)


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


def _call(made: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": made, "type": "function", "function": {"name": name, "arguments": arguments}}


def head_fields(
    kind: str, completion_id: str, created: int, model: str, fingerprint: str | None = None
) -> dict[str, Any]:
    """How a completion, and each of its chunks, begins as OpenAI has it; ``created`` is in seconds since 1970."""
    return {
        "id": completion_id,
        "object": kind,
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
    }
