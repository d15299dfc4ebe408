"""The question as it is put to an expert, what came of it, and the code in that."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

from coe_cli.errors import UsageError

ANSWER_SCHEMA_VERSION = 1


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int


class Timing(Struct, frozen=True):
    """Seconds: loading the model, from the request to the first token, all after it, and everything together."""

    load_s: float | None
    first_token_s: float
    decode_s: float
    total_s: float
    tokens_per_s: float | None


class Answer(Struct, frozen=True):
    """What ``coe ask --format json`` prints: a contract with scripts."""

    schema_version: int
    answer: str
    thinking: str
    expert: str | None
    model: str
    provider: str
    profile: str
    finish_reason: Literal["stop", "length", "cancelled"]
    usage: Usage
    timing: Timing
    warnings: list[str]


def tokens_per_s(completion_tokens: int, decode_s: float) -> float | None:
    """Decode rate without the first token, which belongs to the prefill; None when nothing was measured."""
    return (completion_tokens - 1) / decode_s if completion_tokens > 1 and decode_s > 0 else None


def some_question(text: str, hint: str) -> str:
    """``text``, in which something is asked; ``hint``: how it is given.

    Raises:
        UsageError: it is empty, or white space.
    """
    if not text.strip():
        raise UsageError("there is no question", hint)
    return text


def join_question(piped: str, argument: str) -> str:
    """Piped text first, as context, then the argument."""
    return "\n\n".join(part for part in (piped.strip("\n"), argument.strip()) if part.strip())


_FENCE = re.compile(r"^ {0,3}(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})[^\n]*$", re.MULTILINE)


def last_code_block(text: str) -> str | None:
    """The content of the last fenced block without its fences; an unclosed block runs to the end. None: no block."""
    block: str | None = None
    at = 0
    while opening := _FENCE.search(text, at):
        fence = opening["fence"]
        start = min(opening.end() + 1, len(text))
        closing = re.compile(rf"^ {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}[ \t\r]*$", re.MULTILINE).search(
            text, start
        )
        block = text[start : closing.start()] if closing else text[start:]
        if closing is None:
            break
        at = closing.end()
    return block
