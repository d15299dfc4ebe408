"""Several answers of one model by generators of ONNX Runtime GenAI: one for each that take turns, or one with a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def in_turns(generators: Sequence[Any], prompts: Sequence[Any], tokens: int) -> list[list[int]]:
    """The ids of each answer: a generator each, one token each in turn, which is what a worker does."""
    for generator, ids in zip(generators, prompts, strict=True):
        generator.append_tokens(ids)
    answers: list[list[int]] = [[] for _ in prompts]
    for _ in range(tokens):
        for generator, answer in zip(generators, answers, strict=True):
            generator.generate_next_token()
            answer.append(int(generator.get_next_tokens()[0]))
    return answers


def in_batch(generator: Any, prompts: Sequence[Any], pad: int, tokens: int) -> list[list[int]]:
    """The ids of each answer of one generator with a batch; shorter prompts are padded on the left."""
    import numpy as np

    width = max(map(len, prompts))
    rows = np.full((len(prompts), width), pad, dtype=np.int32)
    for row, ids in zip(rows, prompts, strict=True):
        row[width - len(ids) :] = ids
    generator.append_tokens(rows)
    answers: list[list[int]] = [[] for _ in prompts]
    for _ in range(tokens):
        generator.generate_next_token()
        for answer, token in zip(answers, generator.get_next_tokens(), strict=True):
            answer.append(int(token))
    return answers
