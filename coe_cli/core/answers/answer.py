"""The question as it is put to an expert, and what came of it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

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


def join_question(piped: str, argument: str) -> str:
    """Piped text first, as context, then the argument."""
    return "\n\n".join(part for part in (piped.strip("\n"), argument.strip()) if part.strip())
