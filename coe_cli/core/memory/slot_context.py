"""The context length of slots on a provider that reads each prompt in one run, whose memory grows with its square."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.memory.footprint import ExactAccounting, ModelMemory
from coe_cli.core.memory.pressure import admission_share
from coe_cli.core.units import BYTES_PER_MB

LEAST_CONTEXT: Final = 512
"""Tokens: with less a model is refused, for no question with its system prompt and answer would fit."""

SIDE_BY_SIDE: Final = 2
"""Models with a slot each that a profile of several slots is to hold at once."""


def fitting_context(profile: HardwareProfile, models: Iterable[ModelMemory], most: int | None = None) -> int:
    """The profile's context length, or ``most``; halved until it fits for ``models`` that read whole prompts.

    Each of them must fit with one slot: alone where the profile has one slot, else beside another one like it; never below
    ``LEAST_CONTEXT``.
    """
    context = profile.context_length if most is None else most
    side_by_side = min(profile.max_concurrent_slots, SIDE_BY_SIDE)
    limit = admission_share(profile.pressure_thresholds, alone=side_by_side == 1) / side_by_side
    room_bytes = (profile.vram_budget_mb - profile.fixed_mb) * limit * BYTES_PER_MB
    counting = ExactAccounting()
    for memory in models:
        if memory.on.capabilities.prompt_chunks:
            continue
        left_bytes = room_bytes - counting.weights_bytes(memory)
        while context > LEAST_CONTEXT and counting.slot(memory, context).total_bytes > left_bytes:
            context = max(LEAST_CONTEXT, 1 << (context - 1).bit_length() - 1)
    return context
