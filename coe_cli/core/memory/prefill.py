"""In what chunks a worker reads a prompt; the plan counts what the largest of them takes.

A provider whose generators take tokens once (``Capabilities.can_continue``) has each prompt in one run of the graph.
"""

from __future__ import annotations

from typing import Final

from coe_cli.core.providers.base import Capabilities

CHUNK_TOKENS: Final = 512
"""Maximum tokens per prefill chunk. Chunks let other slots run, make cancelling prompt and bound memory."""

LEAST_CHUNK: Final = 2
"""A single token goes through other kernels, with other rounding (``runtime.worker.slots``)."""


def tokens_at_once(capabilities: Capabilities, chunk_size: int | None = None) -> int | None:
    """The most prompt tokens that one run of the graph sees, None: the whole prompt.

    ``chunk_size`` is the model's own bound, if it has one. OGA splits by it where a generator takes tokens once, too, and
    DirectML then answers wrongly (docs/memory.md): there it is taken out (``providers.settings.configure``).
    """
    if not capabilities.prompt_chunks:
        return None
    return max(LEAST_CHUNK + 1, min(chunk_size or CHUNK_TOKENS, CHUNK_TOKENS))


def next_chunk(left: int, most: int | None) -> int:
    """How many of the ``left`` tokens to run next, up to ``most`` (3 or more), so that no single token is ever left."""
    if most is None or left <= most:
        return left
    return most if left - most >= LEAST_CHUNK else most - 1
