"""The range of each number that a user may give: one table for the command line, the rows of a batch, HTTP and the wire.

Each door checks where text is parsed, in its own library's way (Typer's ``min`` and ``max``, msgspec's ``Meta``, pydantic's
``Field``), by the figures of this table. All of them fit 64 bits, so whatever has passed a door can be sent and stored.
"""

from __future__ import annotations

from typing import NamedTuple


class Range(NamedTuple):
    """Both ends belong to it."""

    least: int
    most: int


COUNT = Range(1, 2**31 - 1)
"""Tokens, or how many candidates: what ONNX Runtime GenAI takes as a 32-bit number."""

MAX_TOKENS = COUNT
TOP_K = COUNT
SEED = Range(0, 2**31 - 1)
WIRE_SEED = Range(-(2**63), 2**63 - 1)
"""OpenAI's clients send any 64-bit number; it is folded into ``SEED``."""

TEMPERATURE = Range(0, 2)
TOP_P = Range(0, 1)
REPETITION_PENALTY = Range(1, 10)
LOGPROBS = Range(0, 20)
"""The likeliest tokens that are told beside each of an answer."""
PRIORITY = Range(-(2**31), 2**31 - 1)
ROW_ID = Range(1, 2**63 - 1)
"""The number of a conversation: a row of SQLite."""

SECONDS_MOST = 1_000_000
"""No wait is longer: what every operating system's timers take."""

MAX_PROMPT_IDS = 1_000_000
STOPS_MOST = 16
STOP_IDS_MOST = 64
STOP_CHARS = Range(1, 1024)
