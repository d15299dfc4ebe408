"""In what pieces a worker reads a prompt; the plan counts what the largest of them takes."""

from __future__ import annotations

from typing import Final

PIECE_TOKENS: Final = 512
"""So much of a prompt is run at a time at most: other answers go on, and a cancelled one ends, in between; and the memory
of a prefill does not grow with the prompt."""

LEAST_PIECE: Final = 2
"""A single token goes through other kernels, with other rounding (``runtime.worker.slots``)."""


def tokens_at_once(chunk_size: int | None = None) -> int:
    """The most prompt tokens that one run of the graph sees; ``chunk_size`` is the model's own bound, if it has one."""
    return max(LEAST_PIECE + 1, min(chunk_size or PIECE_TOKENS, PIECE_TOKENS))


def next_piece(left: int, most: int) -> int:
    """How many of the ``left`` tokens to run next, up to ``most`` (3 or more), so that no single token is ever left."""
    if left <= most:
        return left
    return most if left - most >= LEAST_PIECE else most - 1
