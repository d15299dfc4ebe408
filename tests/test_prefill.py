"""The pieces that prompts are read in, and what a worker's plan makes of them: pure arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_cli.core.memory.prefill import CHUNK_TOKENS, LEAST_CHUNK, next_chunk, tokens_at_once
from coe_cli.core.providers.base import Capabilities

CONTINUES, ONCE = Capabilities(), Capabilities(can_continue=False)


def test_a_generator_that_takes_tokens_once_reads_the_whole_prompt() -> None:
    assert tokens_at_once(ONCE) is None and tokens_at_once(ONCE, 100) is None
    assert next_chunk(5000, None) == 5000


@given(st.integers(LEAST_CHUNK, 5000), st.integers(1, 5000) | st.none())
def test_pieces_make_up_the_prompt_and_none_is_a_single_token(prompt: int, chunk_size: int | None) -> None:
    most, left, pieces = tokens_at_once(CONTINUES, chunk_size), prompt, []
    assert most is not None and 3 <= most <= CHUNK_TOKENS
    while left:
        pieces.append(next_chunk(left, most))
        left -= pieces[-1]
    assert sum(pieces) == prompt
    assert all(LEAST_CHUNK <= piece <= most for piece in pieces)
    assert len(pieces) <= prompt // (most - 1) + 1


@pytest.mark.parametrize(("left", "piece"), [(1, 1), (512, 512), (513, 511), (514, 512), (1024, 512)])
def test_pieces_of_the_usual_size(left: int, piece: int) -> None:
    assert next_chunk(left, CHUNK_TOKENS) == piece
