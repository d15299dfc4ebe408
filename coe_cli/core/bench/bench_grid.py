"""Which points a benchmark measures: every combination of what was asked for, fitted to each model's context."""

from __future__ import annotations

import itertools
import random
from typing import Final

from msgspec import Struct

DEFAULT_PROMPT_TOKENS: Final = (16, 512, 4096)
DEFAULT_GEN_TOKENS: Final = 64
_LOWEST_ID_SHARE: Final = 0.1


class Grid(Struct, frozen=True):
    """What to combine. ``prompt_tokens`` None stands for the default lengths, of which those that fit are taken;
    ``max_lengths`` None for what the college would give, or the next power of two that has room."""

    prompt_tokens: tuple[int, ...] | None = None
    gen_tokens: int = DEFAULT_GEN_TOKENS
    depths: tuple[int, ...] = (0,)
    max_lengths: tuple[int, ...] | None = None
    slots: tuple[int, ...] = (1,)


class Point(Struct, frozen=True):
    """One combination; ``tokens`` of it must fit ``max_length``, which the model's context bounds."""

    prompt_tokens: int
    gen_tokens: int
    depth: int
    max_length: int
    slots: int

    @property
    def tokens(self) -> int:
        return self.depth + self.prompt_tokens + self.gen_tokens

    def problem(self, context_length: int) -> str | None:
        """Why this point cannot be measured on a model with ``context_length``, or None."""
        if self.tokens > self.max_length:
            return f"{self.tokens} tokens do not fit a max_length of {self.max_length}"
        if self.max_length > context_length:
            return f"a max_length of {self.max_length} is beyond the model's context of {context_length}"
        return None


def points(grid: Grid, context_length: int, slot_context: int) -> list[Point]:
    """The points for a model with ``context_length``, whose slots have ``slot_context`` tokens in the college.

    Default prompt lengths that do not fit are left out, unless none does; what was asked for by number stays, with its
    ``problem``.
    """
    found, excess = [], []
    for slots, length, depth, prompt in itertools.product(
        grid.slots, grid.max_lengths or (None,), grid.depths, grid.prompt_tokens or DEFAULT_PROMPT_TOKENS
    ):
        tokens = depth + prompt + grid.gen_tokens
        settled = length or _room(tokens, context_length, slot_context)
        point = Point(prompt, grid.gen_tokens, depth, settled, slots)
        if grid.prompt_tokens is not None or point.problem(context_length) is None:
            found.append(point)
        else:
            excess.append(point)
    return found or excess[:1]


def _room(tokens: int, context_length: int, slot_context: int) -> int:
    needed: int = 1 << (tokens - 1).bit_length()
    return max(slot_context, min(needed, context_length))


def prompt_ids(vocab_size: int, count: int, seed: str) -> list[int]:
    """``count`` token ids, the same for the same seed; the lowest ids, where control tokens lie, are left out."""
    lowest = int(vocab_size * _LOWEST_ID_SHARE)
    choose = random.Random(seed).randrange
    return [choose(lowest, max(lowest + 1, vocab_size - lowest)) for _ in range(count)]
