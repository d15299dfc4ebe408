"""What a model has written, as an API tells it: text, thoughts and calls of functions, for one choice of an answer."""

from __future__ import annotations

import json
import math
import secrets
import time
from typing import Any, Literal, NamedTuple

from coe_cli.core.answers.token_bytes import TokenLogprob
from coe_cli.core.answers.tool_calls import CallDelta, CallReader, ToolCall
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.collecting import AnswerDeltas


class Part(NamedTuple):
    """More of an answer. Of a call ``name`` and ``id`` come with its beginning only; ``call`` is its number."""

    kind: Literal["text", "thinking", "call"]
    text: str
    call: int = 0
    name: str | None = None
    id: str = ""


class Choice:
    """One answer while it is written; its parts are certain as they come and kept until the end.

    ``begins_prompt``: it is the first answer to its prompt.
    """

    def __init__(self, index: int, ask: ce.Ask, *, splits_thinking: bool, begins_prompt: bool = True) -> None:
        self.index, self.begins_prompt, self.ask = index, begins_prompt, ask
        self.logprobs: list[TokenLogprob] | None = None if ask.logprobs is None else []
        self._told = 0
        free = ask.guidance is None and (ask.tools is None or not ask.tools.required)
        self._deltas = AnswerDeltas(splits_thinking=splits_thinking and free)
        self._reader = CallReader() if ask.tools is not None else None
        self._texts: dict[str, list[str]] = {"text": [], "thinking": []}
        self._calls: list[tuple[str, str, list[str]]] = []
        self._tokens = 0
        self._read_at = self._first_at = self._at = 0.0
        self.prefill: ce.PrefillStarted | None = None
        self.finished: ce.Finished | None = None

    def feed(self, event: ce.CollegeEvent) -> list[Part]:
        """The parts that are certain with this event."""
        self._at = time.monotonic()
        if isinstance(event, ce.PrefillStarted):
            self.prefill, self._read_at = event, self._at
        if isinstance(event, ce.Delta):
            self._first_at = self._first_at or self._at
            self._tokens += event.tokens
            if self.logprobs is not None:
                self.logprobs += event.logprobs
        parts: list[Part] = []
        for text, is_thinking in self._deltas.of(event):
            if is_thinking:
                parts.append(Part("thinking", text))
            elif self._reader is None:
                parts.append(Part("text", text))
            else:
                parts += self._read(self._reader.feed(text))
        if isinstance(event, ce.Finished):
            self.finished = event
            parts += self._read(self._reader.finish() if self._reader is not None else [])
        for part in parts:
            if part.kind != "call":
                self._texts[part.kind].append(part.text)
            elif part.name is not None:
                self._calls.append((part.id, part.name, []))
            else:
                self._calls[part.call][2].append(part.text)
        return parts

    def new_logprobs(self) -> list[TokenLogprob]:
        """Those that this has not given yet."""
        found = self.logprobs or []
        new, self._told = found[self._told :], len(found)
        return new

    @property
    def likelihood(self) -> float:
        """The mean of its tokens' log probabilities, where they are known."""
        found = self.logprobs or []
        return sum(each.logprob for each in found) / len(found) if found else -math.inf

    @property
    def completion_tokens(self) -> int:
        """Tokens that have been written by now."""
        return self.finished.completion_tokens if self.finished is not None else self._tokens

    def timings(self) -> dict[str, Any]:
        """Counts and speeds by now, as llama.cpp tells them."""
        finished, prefill = self.finished, self.prefill
        reused = prefill.reused_tokens if prefill is not None else 0
        read = (prefill.prompt_tokens if prefill is not None else 0) - reused
        written = self.completion_tokens
        read_s, write_s = self._first_at - self._read_at, self._at - self._first_at
        if finished is not None:
            read_s, write_s = finished.first_token_s, finished.decode_s
        return {
            "cache_n": reused,
            "prompt_n": read,
            "prompt_ms": round(read_s * 1e3, 3),
            "prompt_per_second": read / max(read_s, 1e-9),
            "predicted_n": written,
            "predicted_ms": round(write_s * 1e3, 3),
            "predicted_per_second": written / max(write_s, 1e-9),
        }

    def progress(self) -> dict[str, Any]:
        """How far the prompt has been read, as llama.cpp tells it: it is told with the first of the answer."""
        timings = self.timings()
        total = timings["cache_n"] + timings["prompt_n"]
        return {"total": total, "cache": timings["cache_n"], "processed": total, "time_ms": timings["prompt_ms"]}

    @staticmethod
    def _read(found: list[str | CallDelta]) -> list[Part]:
        parts = []
        for each in found:
            if isinstance(each, str):
                parts.append(Part("text", each))
            else:  # Mistral's templates want an id of 9 characters
                made = f"c{secrets.token_hex(4)}" if each.name is not None else ""
                parts.append(Part("call", each.arguments, each.call, each.name, made))
        return parts

    @property
    def text(self) -> str:
        return "".join(self._texts["text"])

    @property
    def thoughts(self) -> str:
        return "".join(self._texts["thinking"])

    @property
    def calls(self) -> list[ToolCall]:
        return [ToolCall(made, name, "".join(arguments)) for made, name, arguments in self._calls]

    @property
    def reason(self) -> Literal["stop", "length", "tool_calls"]:
        """Why it ended, as OpenAI says it."""
        if self.finished is not None and self.finished.finish_reason == "length":
            return "length"
        return "tool_calls" if self._calls else "stop"


def arguments_of(text: str) -> Any:
    """The arguments of a call for an API that has them as an object; an empty one where the limit cut them off."""
    try:
        return json.loads(text)
    except ValueError:
        return {}
