"""Failures as HTTP: status, OpenAI's error object, and when to try again."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from coe_cli.core.answers.answer_schema import parameters_of
from coe_cli.core.answers.tool_calls import function_of_line
from coe_cli.errors import (
    Busy,
    CoeError,
    DoesNotFit,
    Draining,
    ModelDamaged,
    ModelMissing,
    NothingToFill,
    OutOfMemory,
    PromptsFull,
    PromptTooLong,
    TimedOut,
    UnknownToken,
    UnusableGrammar,
    UsageError,
)

if TYPE_CHECKING:
    from coe_cli.runtime.college.chat_request import ChatRequest
    from coe_cli.runtime.college.college_events import Ask

_RETRY_AFTER_S = 5.0

_PARAMS: dict[type[CoeError], str] = {ModelMissing: "model", NothingToFill: "suffix"}
"""Error kind → the field that it concerns, whoever found it out."""
_PROMPTS = {"/v1/completions": "prompt", "/completion": "prompt", "/infill": "prompt", "/v1/responses": "input"}
"""Path → the field with the prompt, where it is not a chat's ``messages``."""

_KINDS: list[tuple[type[CoeError], int, str, str | None]] = [
    (PromptTooLong, 400, "invalid_request_error", "context_length_exceeded"),
    (UsageError, 400, "invalid_request_error", None),
    (ModelDamaged, 500, "server_error", None),
    (ModelMissing, 404, "invalid_request_error", "model_not_found"),
    (DoesNotFit, 400, "invalid_request_error", "does_not_fit"),
    (Draining, 503, "service_unavailable", "draining"),
    (PromptsFull, 429, "rate_limit_error", "prompts_full"),
    (Busy, 429, "rate_limit_error", "queue_full"),
    (OutOfMemory, 503, "service_unavailable", "out_of_memory"),
    (TimedOut, 504, "timeout", "timed_out"),
]
"""Error kind → status, OpenAI's ``type`` and ``code``; None keeps the error's own code."""


class HttpError(CoeError):
    """A failure with its HTTP status and the parameter that it concerns; ``allow``: the methods that an address has."""

    allow = ""

    def __init__(
        self, status: int, message: str, hint: str = "", *, code: str = "invalid_request", param: str | None = None
    ) -> None:
        super().__init__(message, hint)
        self.status, self.code, self.param = status, code, param


_LINE = re.compile(r"\bat (\d+)\(\d+\)")
"""Where in a grammar its library found a mistake."""


def renamed(place: str, names: Mapping[str, str]) -> str:
    """A field of a chat completion (`tools.0.function.name`) as the client calls it that sent something else.

    The longest beginning counts that ``names`` has; `*` in it is any index.
    """
    parts = place.split(".")
    for length in range(len(parts), 0, -1):
        index = next((part for part in parts[:length] if part.isdecimal()), "")
        begin = ".".join(parts[:length])
        found = names.get(begin) or names.get(begin.replace(f".{index}", ".*", 1))
        if found is not None:
            return ".".join([found.replace("*", index), *parts[length:]])
    return place


def name_field(error: CoeError, asked: ChatRequest | Ask, names: Mapping[str, str]) -> None:
    """Give the refusal of a grammar the name of the field that it came in by; ``names`` as in ``renamed``."""
    if not isinstance(error, UnusableGrammar):
        return
    place = asked.guidance.field if asked.guidance is not None else ""
    if asked.tools is not None:  # one grammar has them all
        line = _LINE.search(error.message)
        function = function_of_line(asked.tools, int(line[1])) if line is not None else None
        place = parameters_of(function) if function is not None else place or "tools"
    error.param = renamed(error.param or place, names) or None


def status_of(error: CoeError) -> int:
    """The HTTP status that ``error`` means."""
    if isinstance(error, HttpError):
        return error.status
    return next((status for kind, status, _, _ in _KINDS if isinstance(error, kind)), 500)


def error_body(error: CoeError, path: str) -> dict[str, Any]:
    """The failure in the shape of the API that ``path`` belongs to."""
    if path.startswith("/v1/messages"):
        return anthropic_error(error)
    return {"error": message_of(error)} if path.startswith("/api/") else error_object(error, path)


def message_of(error: CoeError) -> str:
    """What is wrong and what to do, in the words that clients look for."""
    message = " ".join(part for part in (error.message.rstrip(".") + ".", error.hint) if part)
    if isinstance(error, UnusableGrammar) and error.param is not None:
        message = f"`{error.param}`: {message}"
    return f"{_overflow(error)} {message}" if isinstance(error, PromptTooLong) else message


_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
}
_ANTHROPIC |= {413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"}


def anthropic_error(error: CoeError) -> dict[str, Any]:
    """``{"type": "error", "error": {"type", "message"}}``; an overflow begins as Anthropic's does."""
    status = status_of(error)
    kind = _ANTHROPIC.get(status, "api_error" if status >= 500 else "invalid_request_error")
    told = f"prompt is too long: {message_of(error)}" if isinstance(error, PromptTooLong) else message_of(error)
    return {"type": "error", "error": {"type": kind, "message": told}}


def error_object(error: CoeError, path: str = "") -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}`` as OpenAI has it."""
    message = message_of(error)
    params = _PARAMS | dict.fromkeys((PromptTooLong, UnknownToken), _PROMPTS.get(path, "messages"))
    param = error.param or next((name for known, name in params.items() if isinstance(error, known)), None)
    kind, code = "server_error", error.code
    if isinstance(error, HttpError):
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
    else:
        for known, _, its_kind, its_code in _KINDS:
            if isinstance(error, known):
                kind, code = its_kind, its_code or error.code
                break
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _overflow(error: PromptTooLong) -> str:
    """The words by which LangChain, LiteLLM and others know that the conversation is to be shortened."""
    if error.tokens is None or error.context_length is None:
        return "The prompt is longer than the model's context length."
    return (
        f"This model's maximum context length is {error.context_length} tokens."
        f" However, the prompt has {error.tokens} tokens."
    )


def error_headers(error: CoeError) -> list[tuple[bytes, bytes]]:
    """``Retry-After`` in whole seconds where trying again is of use, ``Allow`` where another method is."""
    if isinstance(error, HttpError) and error.allow:
        return [(b"allow", error.allow.encode())]
    if status_of(error) not in (429, 503):
        return []
    after_s = getattr(error, "retry_after_s", None) or _RETRY_AFTER_S
    return [(b"retry-after", str(max(1, math.ceil(after_s))).encode())]
