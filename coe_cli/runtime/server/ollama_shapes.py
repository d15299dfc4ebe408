"""How Ollama's answers are written: one JSON object a line, the last with counts and times in nanoseconds."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from coe_cli.errors import CoeError
from coe_cli.runtime.server.answer_parts import Choice, Part, arguments_of
from coe_cli.runtime.server.http_errors import message_of
from coe_cli.runtime.server.streaming import About, Shape

_encode = msgspec.json.Encoder().encode


class OllamaShape(Shape):
    """``chat``: with messages; else as ``/api/generate`` does. ``name``: the model as it was asked for."""

    content_type = b"application/x-ndjson"

    def __init__(self, name: str, *, chat: bool) -> None:
        self._name, self._chat = name, chat
        self._begin = time.monotonic()

    def begin(self, about: About) -> bytes:
        return b""

    def parts(self, choice: Choice, parts: list[Part]) -> bytes:
        return b"".join(
            self._line(self._said(thinking=part.text) if part.kind == "thinking" else self._said(part.text))
            for part in parts
            if part.kind != "call" and part.text
        )

    def end_of(self, choice: Choice) -> bytes:
        return self._line(self._said(calls=_calls(choice))) if choice.calls else b""

    def end(self, about: About) -> bytes:
        return self._line(self._said() | self._ended(about))

    def failed(self, error: CoeError) -> bytes:
        return _encode({"error": message_of(error)}) + b"\n"

    def whole(self, about: About) -> dict[str, Any]:
        (choice,) = about.choices
        said = self._said(text=choice.text, thinking=choice.thoughts, calls=_calls(choice))
        return self._head() | said | self._ended(about)

    def _head(self) -> dict[str, Any]:
        return {"model": self._name, "created_at": now()}

    def _line(self, fields: dict[str, Any]) -> bytes:
        return _encode({"done": False, **self._head(), **fields}) + b"\n"

    def _said(self, text: str = "", thinking: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        thoughts = {"thinking": thinking} if thinking else {}
        if not self._chat:
            return {"response": text, **thoughts}
        return {
            "message": {"role": "assistant", "content": text, **thoughts, **({"tool_calls": calls} if calls else {})}
        }

    def _ended(self, about: About) -> dict[str, Any]:
        (choice,) = about.choices
        finished, prefill = choice.finished, choice.prefill
        assert finished is not None
        return {
            "done": True,
            "done_reason": "length" if choice.reason == "length" else "stop",
            "total_duration": _ns(time.monotonic() - self._begin),
            "load_duration": _ns((prefill.load_s if prefill else None) or 0.0),
            "prompt_eval_count": finished.prompt_tokens,
            "prompt_eval_duration": _ns(finished.first_token_s),
            "eval_count": finished.completion_tokens,
            "eval_duration": _ns(finished.decode_s),
            "coe": about.coe(),
        }


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def now() -> str:
    """The time as Ollama writes it."""
    return datetime.now(UTC).isoformat()


def _calls(choice: Choice) -> list[dict[str, Any]]:
    return [{"function": {"name": call.name, "arguments": arguments_of(call.arguments)}} for call in choice.calls]
