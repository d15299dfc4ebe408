"""How llama.cpp's own endpoints write an answer: ``/completion`` and ``/infill``."""

from __future__ import annotations

from typing import Any

import msgspec

from coe_cli.errors import CoeError
from coe_cli.runtime.server.answer_parts import Choice, Part
from coe_cli.runtime.server.http_errors import error_object
from coe_cli.runtime.server.openai_shapes import told_tokens
from coe_cli.runtime.server.other_requests import LlamaRequest
from coe_cli.runtime.server.streaming import About, Shape

_encode = msgspec.json.Encoder().encode


class LlamaShape(Shape):
    """An answer's text in ``content``; of several answers to complete requests a list."""

    splits_thinking = False

    def __init__(self, request: LlamaRequest) -> None:
        self._request, self.names = request, request.names()

    def begin(self, about: About) -> bytes:
        self._about = about
        if not self._request.return_progress:
            return b""
        told = (
            {"index": c.index, "content": "", "stop": False, "prompt_progress": c.progress()} for c in about.choices
        )
        return b"".join(map(self._event, told))

    def parts(self, choice: Choice, parts: list[Part]) -> bytes:
        text = "".join(part.text for part in parts)
        timed = {"timings": choice.timings()} if self._request.timings_per_token else {}
        return self._event({"index": choice.index, "content": text, "stop": False} | timed | self._tokens(choice))

    def end_of(self, choice: Choice) -> bytes:
        return self._event(self._ended(choice) | {"content": ""})

    def end(self, about: About) -> bytes:
        return b""

    def failed(self, error: CoeError) -> bytes:
        return self._event(error_object(error))

    def whole(self, about: About) -> Any:
        self._about = about
        answers = [self._ended(choice) | {"content": choice.text} for choice in about.choices]
        return answers[0] if len(answers) == 1 else answers

    @staticmethod
    def _event(fields: dict[str, Any]) -> bytes:
        return b"data: " + _encode(fields) + b"\n\n"

    def _tokens(self, choice: Choice) -> dict[str, Any]:
        """The next tokens' ids and probabilities, where they were asked for."""
        new = choice.new_logprobs()
        told: dict[str, Any] = {"completion_probabilities": told_tokens(new, ids=True)} if self._request.n_probs else {}
        return told | {"tokens": [each.id for each in new] if self._request.return_tokens else []}

    def _ended(self, choice: Choice) -> dict[str, Any]:
        finished, prefill = choice.finished, choice.prefill
        assert finished is not None
        return {
            "index": choice.index,
            "stop": True,
            "stop_type": "word" if finished.stopped_by else "limit" if choice.reason == "length" else "eos",
            "stopping_word": finished.stopped_by,
            "has_new_line": "\n" in choice.text,
            "model": self._about.model,
            "tokens_predicted": finished.completion_tokens,
            "tokens_evaluated": finished.prompt_tokens,
            "tokens_cached": prefill.reused_tokens if prefill is not None else 0,
            "truncated": finished.prompt_tokens + finished.completion_tokens >= self._about.context_length,
            "timings": choice.timings(),
            "coe": self._about.coe(),
        } | self._tokens(choice)
