"""Answers as a row of blocks, one after the other: OpenAI's responses and Anthropic's messages, whole and as events."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import msgspec

from coe_cli.errors import CoeError
from coe_cli.runtime.server.answer_parts import Choice, Part, arguments_of
from coe_cli.runtime.server.http_errors import anthropic_error, error_object
from coe_cli.runtime.server.streaming import About, Shape

_encode = msgspec.json.Encoder().encode


class BlockShape(Shape):
    """Opens a block where a part of another kind begins, and closes it before the next."""

    _first: Part | None = None
    """The part that began the block that is open."""
    _count = -1
    _cut = False
    """The block that closes was cut off by the limit of tokens."""

    @abstractmethod
    def opened(self, first: Part) -> list[dict[str, Any]]:
        """The events with which the block that ``first`` begins is opened."""

    @abstractmethod
    def more(self, part: Part) -> dict[str, Any]:
        """The event of more of the block."""

    @abstractmethod
    def closed(self, first: Part) -> list[dict[str, Any]]:
        """The events with which the block that ``first`` began ends."""

    def event(self, fields: dict[str, Any]) -> bytes:
        name: str = fields["type"]
        return b"event: " + name.encode() + b"\ndata: " + _encode(fields) + b"\n\n"

    def parts(self, choice: Choice, parts: list[Part]) -> bytes:
        events: list[dict[str, Any]] = []
        for part in parts:
            if self._first is None or (part.kind, part.call) != (self._first.kind, self._first.call):
                events += self._close()
                self._first, self._count = part, self._count + 1
                events += self.opened(part)
            if part.text:
                events.append(self.more(part))
        return b"".join(self.event(fields) for fields in events)

    def end_of(self, choice: Choice) -> bytes:
        self._cut = choice.reason == "length"
        return b"".join(self.event(fields) for fields in self._close())

    def _close(self) -> list[dict[str, Any]]:
        events = [] if self._first is None else self.closed(self._first)
        self._first = None
        return events


def _blocks(choice: Choice) -> list[Part]:
    """A complete answer, each block as one part."""
    blocks = [Part("thinking", choice.thoughts)] if choice.thoughts else []
    if choice.text or not choice.calls:
        blocks.append(Part("text", choice.text))
    return blocks + [Part("call", c.arguments, number, c.name, c.id) for number, c in enumerate(choice.calls)]


class MessagesShape(BlockShape):
    """Anthropic's."""

    _DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking"), "call": ("input_json_delta", "partial_json")}  # fmt: skip # noqa: RUF012

    def begin(self, about: About) -> bytes:
        return self.event({"type": "message_start", "message": self._message(about, [])})

    def opened(self, first: Part) -> list[dict[str, Any]]:
        block = _content(first._replace(text=""))
        return [{"type": "content_block_start", "index": self._count, "content_block": block}]

    def more(self, part: Part) -> dict[str, Any]:
        kind, field = self._DELTAS[part.kind]
        return {"type": "content_block_delta", "index": self._count, "delta": {"type": kind, field: part.text}}

    def closed(self, first: Part) -> list[dict[str, Any]]:
        signed = {"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": ""}}
        kinds = [*([signed] if first.kind == "thinking" else ()), {"type": "content_block_stop"}]
        return [{**each, "index": self._count} for each in kinds]

    def end(self, about: About) -> bytes:
        (choice,) = about.choices
        told = {"delta": _stop(choice), "usage": self._usage(about), "coe": about.coe()}
        return self.event({"type": "message_delta", **told}) + self.event({"type": "message_stop"})

    def failed(self, error: CoeError) -> bytes:
        return self.event(anthropic_error(error))

    def whole(self, about: About) -> dict[str, Any]:
        (choice,) = about.choices
        blocks = [_content(block) for block in _blocks(choice)]
        return self._message(about, blocks) | _stop(choice) | {"coe": about.coe()}

    def _message(self, about: About, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"msg_{about.id}",
            "type": "message",
            "role": "assistant",
            "model": about.model,
            "content": blocks,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(about),
        }

    @staticmethod
    def _usage(about: About) -> dict[str, Any]:
        counts = about.usage()
        cached = counts["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counts["prompt_tokens"] - cached,
            "cache_read_input_tokens": cached,
            "output_tokens": counts["completion_tokens"],
        }


def _stop(choice: Choice) -> dict[str, Any]:
    """Why it ended, as Anthropic says it."""
    if choice.reason == "stop" and choice.finished is not None and choice.finished.stopped_by:
        return {"stop_reason": "stop_sequence", "stop_sequence": choice.finished.stopped_by}
    reasons = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}
    return {"stop_reason": reasons[choice.reason], "stop_sequence": None}


def _content(block: Part) -> dict[str, Any]:
    """A block as Anthropic has it."""
    if block.kind == "call":
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": arguments_of(block.text)}
    signature = {"signature": ""} if block.kind == "thinking" else {}
    return {"type": block.kind, block.kind: block.text, **signature}


class ResponsesShape(BlockShape):
    """OpenAI's responses. ``request`` holds the fields that a response repeats."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._number = -1
        self._items: list[dict[str, Any]] = []

    def event(self, fields: dict[str, Any]) -> bytes:
        self._number += 1
        return super().event({**fields, "sequence_number": self._number})

    def begin(self, about: About) -> bytes:
        self._about = about
        response = self._response(about, [], "in_progress")
        kinds = ("response.created", "response.in_progress")
        return b"".join(self.event({"type": kind, "response": response}) for kind in kinds)

    def opened(self, first: Part) -> list[dict[str, Any]]:
        self._written: list[str] = []
        item = self._item(first._replace(text=""), "in_progress")
        added = {"type": "response.output_item.added", "output_index": self._count, "item": item}
        if first.kind != "text":
            return [added]
        return [added, self._of_item("response.content_part.added", content_index=0, part=_text(""))]

    def more(self, part: Part) -> dict[str, Any]:
        self._written.append(part.text)
        if part.kind == "call":
            return self._of_item("response.function_call_arguments.delta", delta=part.text)
        if part.kind == "thinking":
            return self._of_item("response.reasoning_text.delta", content_index=0, delta=part.text)
        return self._of_item("response.output_text.delta", content_index=0, delta=part.text, logprobs=[])

    def closed(self, first: Part) -> list[dict[str, Any]]:
        text = "".join(self._written)
        item = self._item(first._replace(text=text), "incomplete" if self._cut else "completed")
        self._items.append(item)
        done = {"type": "response.output_item.done", "output_index": self._count, "item": item}
        if first.kind == "call":
            told = self._of_item("response.function_call_arguments.done", arguments=text, name=first.name)
            return [told, done]
        if first.kind == "thinking":
            return [self._of_item("response.reasoning_text.done", content_index=0, text=text), done]
        return [
            self._of_item("response.output_text.done", content_index=0, text=text, logprobs=[]),
            self._of_item("response.content_part.done", content_index=0, part=_text(text)),
            done,
        ]

    def end(self, about: About) -> bytes:
        response = self._response(about, self._items, None)
        return self.event({"type": f"response.{response['status']}", "response": response})

    def failed(self, error: CoeError) -> bytes:
        told = error_object(error)["error"]
        return self.event({"type": "error", "code": told["code"], "message": told["message"], "param": told["param"]})

    def whole(self, about: About) -> dict[str, Any]:
        (choice,) = about.choices
        items = [_item(block, f"{about.id}_{number}", "completed") for number, block in enumerate(_blocks(choice))]
        if choice.reason == "length":
            items[-1]["status"] = "incomplete"
        return self._response(about, items, None)

    def _item(self, block: Part, status: str) -> dict[str, Any]:
        item = _item(block, f"{self._about.id}_{self._count}", status)
        self._item_id = item["id"]
        return item

    def _of_item(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "item_id": self._item_id, "output_index": self._count, **fields}

    def _response(self, about: About, items: list[dict[str, Any]], status: str | None) -> dict[str, Any]:
        (choice,) = about.choices
        cut, counts = choice.reason == "length", about.usage()
        return {
            "id": f"resp_{about.id}",
            "object": "response",
            "created_at": about.created,
            "status": status or ("incomplete" if cut else "completed"),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut and status is None else None,
            "model": about.model,
            "output": items,
            **self._request,
            "usage": None
            if status is not None
            else {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": counts["prompt_tokens_details"],
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts["total_tokens"],
            },
            "coe": about.coe(),
        }


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item(block: Part, made: str, status: str) -> dict[str, Any]:
    """A block as OpenAI's responses have it; ``made`` is what its id ends with."""
    if block.kind == "call":
        fields = {"type": "function_call", "call_id": block.id, "name": block.name, "arguments": block.text}
        return {"id": f"fc_{made}", "status": status, **fields}
    if block.kind == "thinking":
        content = [{"type": "reasoning_text", "text": block.text}] if block.text else []
        return {"id": f"rs_{made}", "type": "reasoning", "summary": [], "content": content, "status": status}
    parts = [_text(block.text)] if status != "in_progress" else []
    return {"id": f"msg_{made}", "type": "message", "role": "assistant", "status": status, "content": parts}
