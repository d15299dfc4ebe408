"""How llama.cpp's own endpoints write an answer: ``/completion`` and ``/infill``."""

from __future__ import annotations

from typing import Any

import msgspec

from coe_cli.errors import CoeError
from coe_cli.runtime.server.answer_parts import Choice, Part
from coe_cli.runtime.server.http_errors import error_object
from coe_cli.runtime.server.openai_shapes import told_tokens
from coe_cli.runtime.server.streaming import About, Shape

_encode = msgspec.json.Encoder().encode


class LlamaShape(Shape):
    """An answer's text in ``content``; of several answers to complete requests a list."""

    splits_thinking = False

    def begin(self, about: About) -> bytes:
        self._about = about
        return b""

    def parts(self, choice: Choice, parts: list[Part]) -> bytes:
        text = "".join(part.text for part in parts)
        return self._event({"index": choice.index, "content": text, "stop": False} | self._probabilities(choice))

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

    @staticmethod
    def _probabilities(choice: Choice) -> dict[str, Any]:
        return {} if choice.logprobs is None else {"completion_probabilities": told_tokens(choice.new_logprobs())}

    def _ended(self, choice: Choice) -> dict[str, Any]:
        finished, reading = choice.finished, choice.reading
        assert finished is not None
        reused = reading.reused_tokens if reading is not None else 0
        read, written = finished.prompt_tokens - reused, finished.completion_tokens
        return {
            "index": choice.index,
            "stop": True,
            "stop_type": "limit" if choice.reason == "length" else "eos",
            "model": self._about.model,
            "tokens_predicted": written,
            "tokens_evaluated": finished.prompt_tokens,
            "tokens_cached": reused,
            "truncated": False,
            "timings": {
                "cache_n": reused,
                "prompt_n": read,
                "prompt_ms": round(finished.first_token_s * 1e3, 3),
                "prompt_per_second": read / max(finished.first_token_s, 1e-9),
                "predicted_n": written,
                "predicted_ms": round(finished.decode_s * 1e3, 3),
                "predicted_per_second": written / max(finished.decode_s, 1e-9),
            },
            "coe": self._about.coe(),
        } | self._probabilities(choice)
